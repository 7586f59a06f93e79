"""One rectifier for a whole network, also at the places where mmpretrain's classes fix ReLU."""
from mmcv.cnn import build_activation_layer
from torch import nn


def replace_rectifiers(network: nn.Module, act_cfg: dict) -> None:
    """Put another rectifier in the place of every nn.ReLU of a network.

    Args:
        network: changed in place. The new rectifiers work in place where the old ones did, unless act_cfg says
            otherwise.
        act_cfg: for mmcv's ``build_activation_layer``, which names what it cannot build; for example
            ``dict(type='ELU')``.
    """
    for module in list(network.modules()):
        for name, old in module.named_children():
            if type(old) is nn.ReLU:
                new = build_activation_layer(act_cfg)
                if hasattr(new, "inplace"):
                    new.inplace = act_cfg.get("inplace", old.inplace)
                module.add_module(name, new)
