# VGG-16 with BN and LeakyReLU on CIFAR-10 (the paper's figure 7(a)), of slope 0.01 (our choice: PyTorch's; the paper
# names none).
_base_ = "vgg16bn_1xb256_cifar10.py"

model = dict(backbone=dict(act_cfg=dict(type="LeakyReLU", negative_slope=0.01)))
