# SE-ResNet-101, mmpretrain's, under the schedule of all ResNets here.
_base_ = "resnet101_8xb32_in1k.py"

model = dict(backbone=dict(type="SEResNet"))
