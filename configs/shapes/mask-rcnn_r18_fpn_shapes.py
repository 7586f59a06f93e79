# The demo's second step with BN in place of CE, from the classifier that was pretrained with BN.
_base_ = "mask-rcnn_ce-r18_fpn_shapes.py"
model = dict(backbone=dict(type="ResNet", init_cfg=dict(checkpoint="work_dirs/shapes-bn/pretrain/epoch_6.pth")))
