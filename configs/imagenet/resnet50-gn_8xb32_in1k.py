# ResNet-50 with GN in 32 groups, and ReLU (the paper's table 7).
_base_ = "resnet50_8xb32_in1k.py"

model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=32)))
