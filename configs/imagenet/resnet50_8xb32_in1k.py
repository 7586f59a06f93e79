# ResNet-50 with BN and ReLU: 100 epochs, ×0.1 at 30, 60 and 90, label smoothing 0.1. All other ResNets here inherit it.
_base_ = "mmpretrain::resnet/resnet50_8xb32-lbs_in1k.py"

# No warm-up, as mmpretrain (our choice: the paper names none for ResNets; the training file that the authors published
# has five epochs of it).
