# CE-ResNet-50 whose norms, below CE and elsewhere, are INs (the paper's table 7).
_base_ = "resnet50-in_8xb32_in1k.py"

model = dict(backbone=dict(type="CEResNet", zero_init_residual=False))
