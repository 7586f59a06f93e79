# CE-ResNet-18 on ImageNet: 100 epochs, ×0.1 at 30, 60 and 90, label smoothing 0.1.
_base_ = ["../_base_/ce.py", "mmpretrain::resnet/resnet18_8xb32_in1k.py"]

model = dict(
    backbone=dict(type="CEResNet"),
    head=dict(loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, loss_weight=1.0, _delete_=True)),
)
