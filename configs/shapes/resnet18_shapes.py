# The demo's first step with BN in place of CE: what CE's part of the demo's figures is measured against.
_base_ = "ce-resnet18_shapes.py"
model = dict(backbone=dict(type="ResNet", zero_init_residual=False))  # CE's start, where mmpretrain's own is True
