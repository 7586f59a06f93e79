# VGG-16 with BN and ReLU on CIFAR-10: 160 epochs, batches of 256, learning rate 0.1, ×0.1 every 60 epochs. The
# paper's figure 7(a) compares its channels with those of BN+ELU, BN+LReLU and BN+CE+ReLU, a config each.
_base_ = [
    "../_base_/ce.py",
    "mmpretrain::_base_/datasets/cifar10_bs16.py",
    "mmpretrain::_base_/schedules/cifar10_bs128.py",
    "mmpretrain::_base_/default_runtime.py",
]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="VGG", depth=16, norm_cfg=dict(type="BN")),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=10,
        in_channels=512,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
    ),
)

# On one GPU (our choice), where BN and CE see the whole batch.
train_dataloader = dict(batch_size=256)
# The paper leaves momentum and weight decay open. Ours, 0.9 and 5e-4, are those of the VGG paper, whose batches are of
# 256 pictures too. No warm-up: the paper names none.
optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
param_scheduler = dict(milestones=[60, 120])
train_cfg = dict(max_epochs=160)
auto_scale_lr = dict(base_batch_size=256)
