# ResNet-50 with BN and ReLU in which the last γ of each block starts at one, as in the configs with CE: next to it
# CE-ResNet-50 differs in CE alone.
_base_ = "resnet50_8xb32_in1k.py"

model = dict(backbone=dict(zero_init_residual=False))
