"""One rectifier for a whole network, also at the places where mmpretrain's classes fix ReLU."""
from mmcv.cnn import build_activation_layer
from torch import nn


def replace_rectifiers(network: nn.Module, act_cfg: dict) -> None:
    """Put another rectifier in the place of every nn.ReLU of a network.

    Args:
        network: changed in place. The new rectifiers work in place where the old ones did, unless act_cfg says
            otherwise.
        act_cfg: for mmcv's ``build_activation_layer``, for example ``dict(type='ELU')``.

    Raises:
        ValueError: mmcv cannot build act_cfg.
    """
    for module in list(network.modules()):
        for name, old in module.named_children():
            if type(old) is nn.ReLU:
                new = _build(act_cfg)
                if hasattr(new, "inplace"):
                    new.inplace = act_cfg.get("inplace", old.inplace)
                module.add_module(name, new)


def _build(act_cfg: dict) -> nn.Module:
    try:
        return build_activation_layer(act_cfg)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"act_cfg must be the config of a rectifier that mmcv can build, got {act_cfg!r}; set for example "
            "dict(type='ReLU'), dict(type='LeakyReLU', negative_slope=0.01) or dict(type='ELU')"
        ) from error
