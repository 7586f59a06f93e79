# Faster R-CNN with CE-ResNet-50: 24 epochs, ×0.1 at 16 and 22, pretrained by
# configs/imagenet/ce-resnet50_8xb32_in1k.py.
_base_ = ["../_base_/ce.py", "mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py"]

model = dict(
    backbone=dict(
        type="CEResNet",
        init_cfg=dict(
            type="Pretrained", checkpoint="work_dirs/ce-resnet50_8xb32_in1k/epoch_100.pth", prefix="backbone."
        ),
    )
)
