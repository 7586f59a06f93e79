# CE-ResNet-50 whose norms, below CE and elsewhere, are SNs (the paper's table 7).
_base_ = "resnet50-sn_8xb32_in1k.py"

model = dict(backbone=dict(type="CEResNet"))
