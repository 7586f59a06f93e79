# ResNet-50 with LN over C, H and W, which is GN in one group, and ReLU (the paper's table 7).
_base_ = "resnet50_8xb32_in1k.py"

model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=1)))
