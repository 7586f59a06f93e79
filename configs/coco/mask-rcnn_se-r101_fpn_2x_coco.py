# Mask R-CNN with SE-ResNet-101, pretrained by configs/imagenet/seresnet101_8xb32_in1k.py.
_base_ = "mask-rcnn_r101_fpn_2x_coco.py"

custom_imports = dict(imports=["ce_mm", "ce_mm.training", "mmpretrain.models"])  # those of the base, and SEResNet's
model = dict(
    backbone=dict(
        type="mmpretrain.SEResNet", init_cfg=dict(checkpoint="work_dirs/seresnet101_8xb32_in1k/epoch_100.pth")
    )
)
