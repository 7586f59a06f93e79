"""What the parameters of a network's norms say by themselves, without data: γ, β, and λ of Channel Equilibrium.

A rectifier behind a norm of zero mean and unit variance inhibits a channel where |γ| is small and β ≤ 0.
"""
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ce_mm.layers import CENorm, SwitchableNorm

#: Norms of maps whose γ and β belong to one channel each.
NORMS = (_BatchNorm, nn.GroupNorm, nn.InstanceNorm2d, SwitchableNorm)


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every norm of a network once, by its name, in the order in which the network holds them.

    A CENorm stands for the norm inside it; what else is inside it is none of the network's norms.
    """
    inside = {id(module.norm) for module in model.modules() if isinstance(module, CENorm)}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (CENorm, *NORMS)) and id(module) not in inside
    }


def affine_parameters(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """γ and β, both (C,), in float64 on the CPU, of every norm that has them, by the norm's name."""
    return {
        name: (norm.weight.detach().cpu().double(), norm.bias.detach().cpu().double())
        for name, norm in norm_layers(model).items()
        if norm.weight is not None and norm.bias is not None
    }


def nonpositive_ratio(values: Tensor) -> float:
    """The part of the values, (C,), that are 0 or less, 0 to 1; of β it is what the paper's table 6 gives."""
    return (values <= 0).double().mean().item()


def mixing_ratios(model: nn.Module) -> dict[str, float]:
    """λ = sigmoid(mix), the share of batch decorrelation, of every CENorm that has both branches, by its name."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, CENorm) and m.mix is not None}
    return {name: layer.mix.sigmoid().item() for name, layer in layers.items()}
