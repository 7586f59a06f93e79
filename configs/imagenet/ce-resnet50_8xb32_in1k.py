# CE-ResNet-50 on ImageNet: 100 epochs, ×0.1 at 30, 60 and 90, label smoothing 0.1. Besides CE, it differs from
# its baseline in zero_init_residual: True in mmpretrain's ResNet, False in CEResNet, as a zero γ leaves CE nothing to
# decorrelate at the start.
_base_ = ["../_base_/ce.py", "resnet50_8xb32_in1k.py"]

model = dict(backbone=dict(type="CEResNet"))
