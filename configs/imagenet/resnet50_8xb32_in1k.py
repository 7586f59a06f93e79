# ResNet-50 with BN and ReLU: 100 epochs, ×0.1 at 30, 60 and 90, label smoothing 0.1. All other ResNets here inherit it.
_base_ = ["../_base_/ce.py", "mmpretrain::resnet/resnet50_8xb32-lbs_in1k.py"]

# The last γ of each block starts at zero, mmpretrain's default. Every config with CE says False, as a zero γ leaves CE
# nothing to decorrelate at the start; resnet50-nonzero-init is this config with False.
model = dict(backbone=dict(zero_init_residual=True))

# Left as mmpretrain has it, where the authors' own training differs. No warm-up: the paper names none for ResNets, the
# training file that the authors published has five epochs of it. No PCA noise on colours, which theirs has. Label
# smoothing spreads 0.1 over all 1000 classes, 0.1/1000 each; theirs over the 999 others, 0.1/999 each.
