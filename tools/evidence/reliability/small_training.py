"""The training that is killed: a small network with all that draws random numbers or has a state to be resumed."""
_base_ = ["../../../configs/_base_/ce.py", "mmpretrain::_base_/default_runtime.py"]

num_classes = 4
data_preprocessor = dict(num_classes=num_classes, mean=[127.5] * 3, std=[64.0] * 3, to_rgb=True)
model = dict(
    type="ImageClassifier",
    backbone=dict(type="CEResNet", depth=18, stem_channels=8, base_channels=8, drop_path_rate=0.2),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead", num_classes=num_classes, in_channels=64, topk=(1,),
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
    ),
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)  # fmt: skip

load = dict(type="LoadImageFromFile")
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    dataset=dict(
        type="CustomDataset",
        data_root="pictures/train",
        pipeline=[
            load,
            dict(type="RandomResizedCrop", scale=32),
            dict(type="RandomFlip", prob=0.5, direction="horizontal"),
            dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4),
            dict(type="PackInputs"),
        ],
    ),
    sampler=dict(type="DefaultSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,  # mmpretrain's train.py would ask for them
    dataset=dict(type="CustomDataset", data_root="pictures/val", pipeline=[load, dict(type="PackInputs")]),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
val_evaluator = dict(type="Accuracy", topk=(1,))

train_cfg = dict(by_epoch=True, max_epochs=8)
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=12),
    dict(type="CosineAnnealingLR", T_max=20, by_epoch=True),
]
custom_hooks = [*_base_.custom_hooks, dict(type="EMAHook", momentum=0.1, update_buffers=True)]
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=2, save_best="auto", rule="greater")
)
randomness = dict(seed=0)
