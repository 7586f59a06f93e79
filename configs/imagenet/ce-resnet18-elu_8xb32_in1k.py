# CE-ResNet-18 with ELU in the place of every ReLU (the paper's table 7).
_base_ = "ce-resnet18_8xb32_in1k.py"

model = dict(backbone=dict(act_cfg=dict(type="ELU")))
