# CE-MobileNetV2: 150 epochs, cosine from 0.05, weight decay 4e-5, label smoothing 0.1.
_base_ = "mobilenet-v2_8xb32_in1k.py"

model = dict(backbone=dict(type="CEMobileNetV2"))
