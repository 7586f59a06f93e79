# VGG-16 with BN and ELU on CIFAR-10 (the paper's figure 7(a)).
_base_ = "vgg16bn_1xb256_cifar10.py"

model = dict(backbone=dict(act_cfg=dict(type="ELU")))
