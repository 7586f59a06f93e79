# Mask R-CNN with ResNet-101: 24 epochs, ×0.1 at 16 and 22, pretrained by configs/imagenet/resnet101_8xb32_in1k.py. The
# 500 iterations of warm-up are mmdet's (our choice: the paper names none).
_base_ = ["../_base_/ce.py", "mmdet::mask_rcnn/mask-rcnn_r101_fpn_2x_coco.py"]

model = dict(
    backbone=dict(
        init_cfg=dict(
            type="Pretrained", checkpoint="work_dirs/resnet101_8xb32_in1k/epoch_100.pth", prefix="backbone."
        )
    )
)
