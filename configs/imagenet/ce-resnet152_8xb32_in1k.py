# CE-ResNet-152 on ImageNet: 100 epochs, ×0.1 at 30, 60 and 90, label smoothing 0.1.
_base_ = "resnet152_8xb32_in1k.py"

model = dict(backbone=dict(type="CEResNet", zero_init_residual=False))
