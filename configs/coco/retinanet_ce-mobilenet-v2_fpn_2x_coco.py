# RetinaNet with CE-MobileNetV2: 24 epochs, ×0.1 at 16 and 22, pretrained by
# configs/imagenet/ce-mobilenet-v2_8xb32_in1k.py.
_base_ = ["../_base_/ce.py", "mmdet::retinanet/retinanet_r50_fpn_2x_coco.py"]

model = dict(
    backbone=dict(
        type="CEMobileNetV2",
        ce_stages=(True, True, True, True, True, False, False),  # as it was pretrained
        out_indices=(2, 4, 7),  # strides 8, 16 and 32; 7 is the network's end, so that all of it is trained
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(
            type="Pretrained", checkpoint="work_dirs/ce-mobilenet-v2_8xb32_in1k/epoch_150.pth", prefix="backbone."
        ),
        _delete_=True,
    ),
    neck=dict(in_channels=[32, 96, 1280], start_level=0),
)
