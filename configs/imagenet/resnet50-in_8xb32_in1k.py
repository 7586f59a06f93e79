# ResNet-50 with IN with γ and β (which mmcv's IN has only when asked), and ReLU (the paper's table 7).
_base_ = "resnet50_8xb32_in1k.py"

model = dict(backbone=dict(norm_cfg=dict(type="IN", affine=True)))
