# ShuffleNetV2 1x: 240 epochs, polynomial decay from 0.5, weight decay 4e-5, warm-up, label smoothing 0.1.
_base_ = ["../_base_/ce.py", "mmpretrain::shufflenet_v2/shufflenet-v2-1x_16xb64_in1k.py"]

model = dict(head=dict(loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, loss_weight=1.0, _delete_=True)))

train_dataloader = dict(batch_size=128)
# The paper gives neither the warm-up nor the power. Ours are mmpretrain's, tried there for this network, batch size and
# rate: a tenth of the rate for 5000 iterations (the first 4 epochs), then power 1; norms without weight decay.
train_cfg = dict(max_epochs=240)
