# The demo's first step: a CE-ResNet-18 of half width learns to name single shapes on a CPU, in about four minutes.
_base_ = ["../_base_/ce.py", "mmpretrain::resnet/resnet18_8xb32_in1k.py"]

data_root = "data/shapes/crops"
num_classes = 6
data_preprocessor = dict(num_classes=num_classes)
model = dict(
    backbone=dict(type="CEResNet", stem_channels=32, base_channels=32),
    head=dict(num_classes=num_classes, in_channels=256, topk=(1,)),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="PackInputs")]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(type="CustomDataset", data_root=data_root + "/train", pipeline=train_pipeline, _delete_=True),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=1,
    dataset=dict(type="CustomDataset", data_root=data_root + "/val", pipeline=test_pipeline, _delete_=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=6, val_interval=6)
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05, _delete_=True))
param_scheduler = dict(type="CosineAnnealingLR", T_max=6, by_epoch=True, convert_to_iter_based=True, _delete_=True)
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
