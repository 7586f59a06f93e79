# ResNet-18 with BN and ReLU, under the schedule of all ResNets here.
_base_ = "resnet50_8xb32_in1k.py"

model = dict(backbone=dict(depth=18), head=dict(in_channels=512))
