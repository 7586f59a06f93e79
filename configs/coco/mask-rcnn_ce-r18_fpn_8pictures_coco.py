# Can it learn real pictures at all? A small Mask R-CNN on eight pictures of COCO, on a CPU, starting from the backbone
# that the demo pretrained on shapes.
_base_ = ["../_base_/ce.py", "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"]

channels = 96
norm_cfg = dict(type="BN")
roi_extractor = dict(out_channels=channels, roi_layer=dict(sampling_ratio=1))  # more samples are slow on a CPU
model = dict(
    backbone=dict(
        type="CEResNet",
        depth=18,
        stem_channels=32,
        base_channels=32,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=dict(type="Pretrained", checkpoint="work_dirs/shapes/pretrain/epoch_6.pth", prefix="backbone."),
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=dict(in_channels=channels, fc_out_channels=512),
        mask_roi_extractor=roi_extractor,
        mask_head=dict(num_convs=2, in_channels=channels, conv_out_channels=channels, norm_cfg=norm_cfg),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=300), rcnn=dict(sampler=dict(num=96, pos_fraction=0.5))
    ),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=300)),
)

scale = (384, 384)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
annotations = "work_dirs/eight_pictures/annotations.json"
pictures = "data/coco/train2017/"
dataset = dict(data_root="", ann_file=annotations, data_prefix=dict(img=pictures))
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        type="RepeatDataset",
        times=20,
        dataset=dict(type="CocoDataset", pipeline=train_pipeline, **dataset),
        _delete_=True,
    ),
)
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=annotations)
test_evaluator = val_evaluator

max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05, _delete_=True), clip_grad=dict(max_norm=10)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=30),
    dict(type="CosineAnnealingLR", T_max=max_epochs, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=2)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
