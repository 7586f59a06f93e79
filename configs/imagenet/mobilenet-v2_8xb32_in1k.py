# MobileNetV2: 150 epochs, cosine from 0.05, weight decay 4e-5, label smoothing 0.1. No warm-up, and one step of the
# cosine an epoch, as mmpretrain's (our choices: the paper says neither).
_base_ = ["../_base_/ce.py", "mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py"]

model = dict(head=dict(loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, loss_weight=1.0, _delete_=True)))

optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = dict(type="CosineAnnealingLR", by_epoch=True, T_max=150, _delete_=True)
train_cfg = dict(max_epochs=150)
