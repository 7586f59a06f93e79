# CE-ShuffleNetV2 1x: 240 epochs, polynomial decay from 0.5, weight decay 4e-5, warm-up, label smoothing 0.1.
_base_ = "shufflenet-v2-1x_8xb128_in1k.py"

model = dict(backbone=dict(type="CEShuffleNetV2"))
