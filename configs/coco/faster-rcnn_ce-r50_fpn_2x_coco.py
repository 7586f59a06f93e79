# Faster R-CNN with CE-ResNet-50: 24 epochs, ×0.1 at 16 and 22, pretrained by configs/imagenet/ce-resnet50_8xb32_in1k.py
# and taken out of the classifier by tools/convert_checkpoint.py.
_base_ = ["../_base_/ce.py", "mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py"]

model = dict(
    backbone=dict(
        type="CEResNet", init_cfg=dict(type="Pretrained", checkpoint="checkpoints/ce-resnet50_8xb32_in1k_backbone.pth")
    )
)
