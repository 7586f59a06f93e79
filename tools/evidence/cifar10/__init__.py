"""CE against other norms and rectifiers on CIFAR-10: docs/cifar10."""
from ce_mm.compat.torch_alone import stand_in

stand_in()
