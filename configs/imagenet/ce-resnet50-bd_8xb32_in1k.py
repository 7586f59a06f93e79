# CE-ResNet-50 with batch decorrelation alone (the paper's ablation of the branches).
_base_ = "ce-resnet50_8xb32_in1k.py"

model = dict(backbone=dict(ce_cfg=dict(branches=("bd",))))
