"""CE for deployment: every CENorm and SN of a trained model as one module of standard operators, its constants folded.

In inference a layer's matrices do not depend on the batch. With z = x - running mean and the base norm's x̃ = a z + β,

    y = (λ P Diag(a)) z + λ P β + (1-λ) d_n (a z + β),    d_n = f(a² var_hw(x_n)) s^(-1/2)

so the group matrix is the weight of a grouped 1×1 convolution, and a² goes into the gate's first layer. Only the gate
still looks at x. z stays explicit: W x and its constant cancel where a channel's mean is large against its spread.

A base norm that looks at each sample (GN, LN, IN, SN) does not fold: it is applied first, z = x̃, a = 1 and β = 0.

Custom operators are fast in Python and unknown to exporters; the operators here (sub, mean, conv2d, linear, layer_norm
and elementwise ones) are known to torch.export, torch.jit and ONNX, for any batch and map size.
"""
import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from ce_mm.layers.base_norm import BatchBase, GroupBase
from ce_mm.layers.ce_norm import CENorm
from ce_mm.layers.instance_reweighting import InstanceReweighting
from ce_mm.layers.onlookers import one_call
from ce_mm.layers.switchable_norm import SwitchableNorm
from ce_mm.ops import check_map, compute_dtype


def fold(model: nn.Module) -> nn.Module:
    """A copy of a model for inference, in eval mode, with :class:`FoldedCE` in every place of a CENorm or an SN.

    The model itself is left as it is and shares no memory with the copy. A layer that stands in several places is one
    FoldedCE in all of them. A layer alone becomes a FoldedCE; without any the result is a plain copy.

    Other modules of the copy are what they were: for their sake, keep it in eval mode.
    """
    layers = {}
    for module in model.modules():
        if isinstance(module, CENorm):
            layers[id(module)] = FoldedCE(module)
        elif isinstance(module, SwitchableNorm):
            layers[id(module)] = FoldedCE(_as_ce(module))
    copied = copy.deepcopy(model, layers)  # takes for done what its memo holds
    copied.eval()  # not chained: the train() of mmpretrain's backbones returns nothing
    return copied


def _as_ce(norm: SwitchableNorm) -> CENorm:
    """SN as a CE without branches, which is its base norm alone."""
    ce = CENorm(norm.num_features, dict(type="SN"), branches=())
    ce.norm = norm
    return ce


class FoldedCE(nn.Module):
    """What a CENorm computes in eval mode, as it is at this moment: there is nothing to train.

    The mode makes no difference: after ``train()`` it computes the same, and no buffer moves.

    Args:
        ce: the layer; it is only read, in whichever mode it is.

    Buffers, in the type of ce's own, float32 at least (``half()`` leaves them so: folded constants can lie outside
    half's range):
        base.*: of the :class:`FoldedMean`, :class:`FoldedGroupNorm` or :class:`FoldedSwitchableNorm` that gives z.
        matrix, bias: (C, g, 1, 1) and (C,), λ P Diag(a) and λ P β; None without 'bd'.
        scale, offset: (C, 1, 1), a and β, times (1-λ) s^(-1/2) with 'ir'; None with 'bd' alone, and where z is x̃ and
            there is no branch.
        gate.*: see :class:`FoldedGate`; ``gate`` is None without 'ir'.
    """

    def __init__(self, ce: CENorm) -> None:
        super().__init__()
        bd, ir, self.num_features = ce.bd, ce.ir, ce.num_features
        like = next(itertools.chain(ce.buffers(), ce.parameters()), torch.empty(0))
        self.base, a, beta = _fold_base(ce, like)
        of_bd = of_ir = 1
        if ce.mix is not None:
            of_bd, of_ir = torch.sigmoid(_exact(ce.mix)), torch.sigmoid(-_exact(ce.mix))

        matrix = bias = scale = offset = None
        self.groups = 1
        if bd is not None:
            self.groups, g, _ = bd.running_whitening.shape
            whitening = of_bd * _exact(bd.running_whitening)
            matrix = (whitening * a.view(-1, 1, g)).view(-1, g, 1, 1)
            bias = (whitening @ beta.view(-1, g, 1)).view(-1)
        if ir is not None:
            of_ir = of_ir * _exact(ir.running_inv_std_scale)
        if ir is not None or (bd is None and isinstance(self.base, FoldedMean)):
            scale, offset = (of_ir * a).view(-1, 1, 1), (of_ir * beta).view(-1, 1, 1)
        _keep(self, like, matrix=matrix, bias=bias, scale=scale, offset=offset)
        self.gate = None if ir is None else FoldedGate(ir, a)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        overwrite: bool = False,
        ceiling: float | None = None,
    ) -> Tensor:
        """CE of x, then, if asked, the residual add and the ReLU that follow it in a network.

        Args:
            x: (N, C, H, W), any floating type; computed in the type of the buffers, also under autocast.
            residual: added to the result, of the same shape.
            relu: rectify at the end.
            overwrite: CENorm's, of which no use is made here.
            ceiling: what the ReLU cuts its results off at, or None.

        Returns:
            (N, C, H, W), of x's type and memory format, a fresh tensor.

        Raises:
            ValueError: x or the residual has another shape.
            TypeError: x is of no floating type.
        """
        # Entered only where it changes something: exporters would keep the context as an operator of its own.
        if not torch.jit.is_scripting():
            if isinstance(x, Proxy):
                return one_call(self, x, residual=residual, relu=relu, ceiling=ceiling)
            if not torch.jit.is_tracing():  # which would settle for the shapes of one map
                check_map(f"FoldedCE({self.num_features})", x, self.num_features, residual)
            device = x.device.type
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return self._equalize(x, residual, relu, ceiling)
        return self._equalize(x, residual, relu, ceiling)

    def _equalize(self, x: Tensor, residual: Tensor | None, relu: bool, ceiling: float | None) -> Tensor:
        z = self.base(x)
        scale, offset = self.scale, self.offset
        if self.gate is not None:
            gate = self.gate(z)
            scale, offset = gate * scale, gate * offset
        if self.matrix is None:
            y = z if scale is None else torch.addcmul(offset, scale, z)
        else:
            y = F.conv2d(z, self.matrix, self.bias, groups=self.groups)
            if scale is not None:
                y = torch.addcmul(y, scale, z) + offset
        if residual is not None:
            y = y + residual
        if relu:
            y = y.relu() if ceiling is None else F.hardtanh(y, 0.0, ceiling)
        return y.to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        def widely(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if compute_dtype(moved.dtype) == moved.dtype else tensor.to(moved.device)

        return super()._apply(widely, *args, **kwargs)


class FoldedGate(nn.Module):
    """The gate f(a² var_hw(x)) of instance reweighting, from z = x - running mean.

    Args:
        ir: the branch.
        a: (C,), the base norm's.

    Buffers:
        fc1: (C/r, C), its columns times a².
        ln_weight, ln_bias, fc2: (C/r,), (C/r,) and (C, C/r), as in ``ir``.
    """

    def __init__(self, ir: InstanceReweighting, a: Tensor) -> None:
        super().__init__()
        like = ir.running_inv_std_scale
        fc1, ln_weight, ln_bias, fc2, eps = ir.gate(like.dtype)
        self.correction, self.eps = ir.correction, eps
        _keep(
            self, like, fc1=_exact(fc1) * a.square(), ln_weight=_exact(ln_weight), ln_bias=_exact(ln_bias),
            fc2=_exact(fc2),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, 1, 1) between 0 and 1, for a map (N, C, H, W) of the buffers' type."""
        # In two passes: a difference of two means would cancel where a sample lies far from the running mean.
        variance = (z - z.mean((2, 3), keepdim=True)).square().mean((2, 3))
        if self.correction:
            positions = z.shape[2] * z.shape[3]
            # The divisor is twice max(positions - 1, 1), without a choice that a tracer would settle for one size.
            variance = variance * (2 * positions / (positions + abs(positions - 2)))
        hidden = F.linear(variance, self.fc1)
        hidden = F.layer_norm(hidden, self.ln_weight.shape, self.ln_weight, self.ln_bias, self.eps)
        return F.linear(hidden.relu(), self.fc2).sigmoid()[..., None, None]


class FoldedMean(nn.Module):
    """z = x - running mean, what is left of a batch norm: its a and β are folded into what follows.

    Buffers:
        mean: (C, 1, 1), the running mean.
    """

    def __init__(self, mean: Tensor, like: Tensor) -> None:
        super().__init__()
        _keep(self, like, mean=mean.view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), in the type of the buffer."""
        return x.to(self.mean.dtype) - self.mean


class FoldedSampleNorm(nn.Module):
    """z = x̃ of a base norm with a scale and an offset for each sample.

    Args:
        norm: the base norm.
        num_features: C.
        like: a tensor with the device and type of the layer.

    Buffers:
        weight, bias: (C, 1, 1), γ and β.
    """

    def __init__(self, norm: nn.Module, num_features: int, like: Tensor) -> None:
        super().__init__()
        self.eps = norm.eps
        weight, bias = _parameters(norm, num_features)
        _keep(self, like, weight=weight.view(-1, 1, 1), bias=bias.view(-1, 1, 1))

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

    def __init__(self, norm: nn.Module, num_features: int, like: Tensor, groups: int) -> None:
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

    def __init__(self, norm: nn.Module, num_features: int, like: Tensor) -> None:
        super().__init__(norm, num_features, like)
        running_mean, running_var = (_exact(value).view(-1, 1, 1) for value in (norm.running_mean, norm.running_var))
        of_mean, of_variance = (_exact(logits).softmax(0) for logits in (norm.mean_weight, norm.var_weight))
        _keep(self, like, of_mean=of_mean, of_variance=of_variance)
        _keep(self, like, running_mean=running_mean, running_var=running_var)

    def mixed(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """As SN's."""
        away = mean - mean.mean(1, keepdim=True)  # of the layer; of the instance it is 0
        layer = (variance + away.square()).mean(1, keepdim=True)
        away = self.of_mean[1] * away + self.of_mean[2] * (mean - self.running_mean)
        of_instance, of_layer, of_batch = self.of_variance.unbind()
        return away, of_instance * variance + of_layer * layer + of_batch * self.running_var


def _fold_base(ce: CENorm, like: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """What gives z of x, and the a and β in x̃ = a z + β that are left to fold, both (C,)."""
    norm, strategy, c = ce.norm, ce.base, ce.num_features
    if isinstance(strategy, BatchBase):
        a, beta = _parameters(norm, c)
        a = a * torch.rsqrt(_exact(norm.running_var) + norm.eps)
        return FoldedMean(_exact(norm.running_mean), like), a, beta
    if isinstance(strategy, GroupBase):
        base = FoldedGroupNorm(norm, c, like, strategy.groups)
    else:
        base = FoldedSwitchableNorm(norm, c, like)
    return base, torch.ones(c, dtype=torch.float64), torch.zeros(c, dtype=torch.float64)


def _parameters(norm: nn.Module, num_features: int) -> tuple[Tensor, Tensor]:
    """γ and β, (C,), 1 and 0 where the norm has none."""
    weight = torch.ones(num_features) if norm.weight is None else norm.weight
    bias = torch.zeros(num_features) if norm.bias is None else norm.bias
    return _exact(weight), _exact(bias)


def _exact(value: Tensor) -> Tensor:
    """A value to fold with: in float64, which not every device has."""
    return value.detach().to("cpu", torch.float64)


def _keep(module: nn.Module, like: Tensor, **constants: Tensor | None) -> None:
    """Register constants as buffers, on the device of ``like`` and in its type, float32 at least."""
    for name, value in constants.items():
        copied = None if value is None else value.to(like.device, compute_dtype(like.dtype), copy=True)
        module.register_buffer(name, copied)
