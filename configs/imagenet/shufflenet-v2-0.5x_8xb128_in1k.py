# ShuffleNetV2 0.5x, under the schedule of 1x.
_base_ = "shufflenet-v2-1x_8xb128_in1k.py"

model = dict(backbone=dict(widen_factor=0.5))
