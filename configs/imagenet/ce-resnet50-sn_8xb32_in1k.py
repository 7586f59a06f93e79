# CE-ResNet-50 whose norms, below CE and elsewhere, are SNs. CE over SN is ours: the paper sets SN against CE on BN (its
# figure 7(b)).
_base_ = "resnet50-sn_8xb32_in1k.py"

model = dict(backbone=dict(type="CEResNet", zero_init_residual=False))
