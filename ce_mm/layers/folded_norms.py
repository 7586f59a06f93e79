"""What is left of a base norm where CE is folded for deployment: a module of standard operators for each kind.

Each gives z of x. A batch norm leaves its running mean alone, for its a and β fold into what follows; a norm that looks
at each sample does not fold, and gives z = x̃.
"""
import torch
from torch import Tensor, nn

from ce_mm.ops import compute_dtype
from ce_mm.ops.types import NormModule


class FoldedMean(nn.Module):
    """z = x - running mean, what is left of a batch norm: its a and β are folded into what follows.

    Buffers:
        mean: (C, 1, 1), the running mean.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, like: Tensor) -> None:
        super().__init__()
        keep(self, like, mean=mean.view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), in the type of the buffer."""
        return x.to(self.mean.dtype) - self.mean


class FoldedSampleNorm(nn.Module):
    """z = x̃ of a base norm with a scale and an offset for each sample.

    Buffers:
        weight, bias: (C, 1, 1), γ and β.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: NormModule, num_features: int, like: Tensor) -> None:
        super().__init__()
        self.eps = norm.eps
        weight, bias = parameters(norm, num_features)
        keep(self, like, weight=weight.view(-1, 1, 1), bias=bias.view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), in the type of the buffers."""
        x = x.to(self.weight.dtype)
        mean = x.mean((2, 3), keepdim=True)
        z = x - mean
        away, variance = self.mixed(mean, z.square().mean((2, 3), keepdim=True))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(torch.addcmul(self.bias, scale, away), scale, z)

    def mixed(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The channel's mean less the norm's, and the norm's variance.

        Args:
            mean, variance: (N, C, 1, 1), of each sample and channel.

        Returns:
            Both (N, C, 1, 1).
        """
        raise NotImplementedError


class FoldedGroupNorm(FoldedSampleNorm):
    """x̃ of GN, with one group of LN, with C groups of IN."""

    def __init__(self, norm: NormModule, num_features: int, like: Tensor, groups: int) -> None:
        super().__init__(norm, num_features, like)
        self.sizes = [groups, num_features // groups]

    def mixed(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """As GN's."""
        mean = mean.unflatten(1, self.sizes)
        away = mean - mean.mean(2, keepdim=True)
        variance = (variance.unflatten(1, self.sizes) + away.square()).mean(2, keepdim=True)
        return away.flatten(1, 2), variance.expand_as(away).flatten(1, 2)


class FoldedSwitchableNorm(FoldedSampleNorm):
    """x̃ of SN.

    Further buffers:
        of_mean, of_variance: (3,), w and w'.
        running_mean, running_var: (C, 1, 1).
    """

    of_mean: Tensor
    of_variance: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: NormModule, num_features: int, like: Tensor) -> None:
        super().__init__(norm, num_features, like)
        running_mean, running_var = (exact(value).view(-1, 1, 1) for value in (norm.running_mean, norm.running_var))
        of_mean, of_variance = (exact(logits).softmax(0) for logits in (norm.mean_weight, norm.var_weight))
        keep(self, like, of_mean=of_mean, of_variance=of_variance)
        keep(self, like, running_mean=running_mean, running_var=running_var)

    def mixed(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """As SN's."""
        away = mean - mean.mean(1, keepdim=True)  # of the layer; of the instance it is 0
        layer = (variance + away.square()).mean(1, keepdim=True)
        away = self.of_mean[1] * away + self.of_mean[2] * (mean - self.running_mean)
        of_instance, of_layer, of_batch = self.of_variance.unbind()
        return away, of_instance * variance + of_layer * layer + of_batch * self.running_var


def parameters(norm: NormModule, num_features: int) -> tuple[Tensor, Tensor]:
    """γ and β, (C,), 1 and 0 where the norm has none."""
    weight = torch.ones(num_features) if norm.weight is None else norm.weight
    bias = torch.zeros(num_features) if norm.bias is None else norm.bias
    return exact(weight), exact(bias)


def exact(value: Tensor) -> Tensor:
    """A value to fold with: in float64, which not every device has."""
    return value.detach().to("cpu", torch.float64)


def keep(module: nn.Module, like: Tensor, **constants: Tensor | None) -> None:
    """Register constants as buffers, on the device of ``like`` and in its type, float32 at least."""
    for name, value in constants.items():
        copied = None if value is None else value.to(like.device, compute_dtype(like.dtype), copy=True)
        module.register_buffer(name, copied)
