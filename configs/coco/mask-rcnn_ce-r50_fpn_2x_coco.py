# Mask R-CNN with CE-ResNet-50, pretrained by configs/imagenet/ce-resnet50_8xb32_in1k.py.
_base_ = "mask-rcnn_r50_fpn_2x_coco.py"

model = dict(
    backbone=dict(type="CEResNet", init_cfg=dict(checkpoint="work_dirs/ce-resnet50_8xb32_in1k/epoch_100.pth"))
)
