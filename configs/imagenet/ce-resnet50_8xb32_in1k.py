# CE-ResNet-50 on ImageNet: 100 epochs, ×0.1 at 30, 60 and 90, label smoothing 0.1. Besides CE, it differs from its
# baseline in zero_init_residual, as a zero γ leaves CE nothing to decorrelate at the start; resnet50-nonzero-init is
# the baseline without that difference. CE stands after the stem's norm too, and takes Σ of the whole map there, without
# the paper's max pool: see ce-resnet50-stem-pool.
_base_ = "resnet50_8xb32_in1k.py"

model = dict(backbone=dict(type="CEResNet", zero_init_residual=False))
