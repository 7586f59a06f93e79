# ResNet-50 with switchable norm (SN, from ce_mm) and ReLU (the paper's table 7).
_base_ = ["../_base_/ce.py", "resnet50_8xb32_in1k.py"]

model = dict(backbone=dict(norm_cfg=dict(type="SN")))
