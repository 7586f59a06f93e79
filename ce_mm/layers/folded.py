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
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from ce_mm.layers.branches import InstanceReweighting
from ce_mm.layers.ce_norm import CENorm
from ce_mm.layers.folded_norms import FoldedMean, exact, keep
from ce_mm.layers.onlookers import one_call
from ce_mm.layers.switchable_norm import SwitchableNorm
from ce_mm.ops import RELU, Gate, check_map, compute_dtype


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

    if TYPE_CHECKING:  # torch.jit.script would take them for tensors or None where they are known to be None
        matrix: Tensor | None
        bias: Tensor | None
        scale: Tensor | None
        offset: Tensor | None

    def __init__(self, ce: CENorm) -> None:
        super().__init__()
        bd, ir, self.num_features = ce.bd, ce.ir, ce.num_features
        like = next(itertools.chain(ce.buffers(), ce.parameters()), torch.empty(0))
        self.base, a, beta = ce.base.fold(ce.num_features, like)
        of_bd: Tensor | float = 1.0
        of_ir: Tensor | float = 1.0
        if ce.mix is not None:
            of_bd, of_ir = torch.sigmoid(exact(ce.mix)), torch.sigmoid(-exact(ce.mix))

        matrix = bias = scale = offset = None
        self.groups = 1
        if bd is not None:
            self.groups, g, _ = bd.running_whitening.shape
            whitening = of_bd * exact(bd.running_whitening)
            matrix = (whitening * a.view(-1, 1, g)).view(-1, g, 1, 1)
            bias = (whitening @ beta.view(-1, g, 1)).view(-1)
        if ir is not None:
            of_ir = of_ir * exact(ir.running_inv_std_scale)
        if ir is not None or (bd is None and isinstance(self.base, FoldedMean)):
            scale, offset = (of_ir * a).view(-1, 1, 1), (of_ir * beta).view(-1, 1, 1)
        keep(self, like, matrix=matrix, bias=bias, scale=scale, offset=offset)
        self.gate = None if ir is None else FoldedGate(ir, a)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        rectifier: float | None = None,
        overwrite: bool = False,
    ) -> Tensor:
        """As :meth:`CENorm.forward` in eval mode, computed in the type of the buffers, also under autocast.

        The result is always a fresh tensor: no use is made of ``overwrite``.
        """
        # Entered only where it changes something: exporters would keep the context as an operator of its own.
        if not torch.jit.is_scripting():
            if isinstance(x, Proxy):
                return one_call(self, x, residual=residual, rectifier=rectifier)
            if not torch.jit.is_tracing():  # which would settle for the shapes of one map
                check_map(f"FoldedCE({self.num_features})", x, self.num_features, residual, rectifier)
            device = x.device.type
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return self._equalize(x, residual, rectifier)
        return self._equalize(x, residual, rectifier)

    def _equalize(self, x: Tensor, residual: Tensor | None, rectifier: float | None) -> Tensor:
        z = self.base(x)
        scale, offset = self.scale, self.offset
        if self.gate is not None:
            gate = self.gate(z)
            scale, offset = gate * scale, gate * offset
        if self.matrix is None:
            y = z if scale is None or offset is None else torch.addcmul(offset, scale, z)
        else:
            y = F.conv2d(z, self.matrix, self.bias, groups=self.groups)
            if scale is not None and offset is not None:
                y = torch.addcmul(y, scale, z) + offset
        if residual is not None:
            y = y + residual
        if rectifier is not None:
            y = y.relu() if rectifier == RELU else F.hardtanh(y, 0.0, rectifier)
        return y.to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        def widely(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if compute_dtype(moved.dtype) == moved.dtype else tensor.to(moved.device)

        return super()._apply(widely, *args, **kwargs)


class FoldedGate(nn.Module):
    """The gate f(a² var_hw(x)) of instance reweighting, from z = x - running mean.

    Buffers:
        fc1: (C/r, C), its columns times a².
        ln_weight, ln_bias, fc2: (C/r,), (C/r,) and (C, C/r), as in ``ir``.
    """

    fc1: Tensor
    ln_weight: Tensor
    ln_bias: Tensor
    fc2: Tensor

    def __init__(self, ir: InstanceReweighting, a: Tensor) -> None:
        super().__init__()
        like = ir.running_inv_std_scale
        fc1, ln_weight, ln_bias, fc2, eps = Gate.of(ir.fc1, ir.ln, ir.fc2, like.dtype)
        self.correction, self.eps = ir.correction, eps
        keep(
            self, like, fc1=exact(fc1) * a.square(), ln_weight=exact(ln_weight), ln_bias=exact(ln_bias),
            fc2=exact(fc2),
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
