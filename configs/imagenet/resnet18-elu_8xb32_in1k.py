# ResNet-18 with BN and ELU (the paper's table 7): CEResNet without CE, as mmpretrain's ResNet fixes ReLU in its stem;
# the last norms of the blocks start at zero, as in mmpretrain's.
_base_ = "ce-resnet18-elu_8xb32_in1k.py"

model = dict(backbone=dict(ce_cfg=dict(branches=()), zero_init_residual=True))
