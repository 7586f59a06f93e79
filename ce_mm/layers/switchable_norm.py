"""Switchable norm (SN): instance, layer and batch norm mixed by learnt weights (Luo et al., ICLR 2019).

    x̃ = γ (x - Σ_k w_k μ_k) / sqrt(Σ_k w'_k σ²_k + ε) + β,   k in (IN, LN, BN),   w, w' = softmax of three weights each

All means and variances follow from those of every sample and channel, so SN is one read of x and one affine map of it.
"""
import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.instancenorm import _InstanceNorm

from ce_mm import ops
from ce_mm.layers.arguments import expect, is_count, is_number
from ce_mm.layers.onlookers import one_call
from ce_mm.layers.precision import full_precision
from ce_mm.layers.running_statistics import WholeBatch, running_averages, running_statistics


class SwitchableNorm(_InstanceNorm):
    """Switchable norm of a map, registered as ``SN``.

    In training BN's part takes the statistics of the batch (of this process), in inference the running ones; IN's and
    LN's parts look at each sample in both. All σ²_k are biased, as in the paper; the authors' code corrects IN's.

    By class it is one of PyTorch's instance norms, which ``norm_decay_mult`` finds, and no batch norm:
    ``convert_sync_batchnorm`` and ``fuse_conv_bn``, which would replace it by another norm, leave it alone. But
    ``norm_eval`` of OpenMMLab's backbones does so too; that of this package's backbones, ``frozen_stages`` and
    ``eval()`` freeze it.

    Args:
        num_features: C.
        eps: ε.
        momentum: of the running mean and variance, as BatchNorm2d's.

    Raises:
        ValueError: an argument is of another kind or out of range.

    State: ``weight`` and ``bias``, (C,), γ and β; ``mean_weight`` and ``var_weight``, (3,), the logits of w and w' in
    the order IN, LN, BN, from 1; ``running_mean``, ``running_var``, (C,), and ``num_batches_tracked``, as
    BatchNorm2d's.
    """

    _abbr_ = "bn"  # mmcv names the layer by it, so that bn1, bn2, bn3 stay what they are with BN

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        moves = momentum is None or is_number(momentum, 0, 1)
        expect(is_count(num_features), "SwitchableNorm's num_features", num_features, "a whole number of at least 1")
        expect(is_number(eps, least=0), "SwitchableNorm's eps", eps, "a number of at least 0")
        expect(moves, "SwitchableNorm's momentum", momentum, "a number from 0 to 1, or None")
        super().__init__(num_features, eps, momentum, affine=True, track_running_stats=True)
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))
        #: As CENorm's; it stays None inside a CENorm with branches, which has its own.
        self.finite: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """SN of x.

        Args:
            x: (N, C, H, W), any floating type; sums are taken in float32 at least, also under autocast.

        Returns:
            (N, C, H, W), of x's type and memory format, a fresh tensor.

        Raises:
            ValueError: x has another shape.
            TypeError: x is of no floating type.
        """
        if isinstance(x, Proxy):
            return one_call(self, x)
        ops.check_map(f"SwitchableNorm({self.num_features})", x, self.num_features)
        with full_precision(x.device.type):
            guess = self.running_mean, self.running_var
            moments = ops.moments(x, 1, guess=guess, products=False, per_sample=True)
            training = self.training and x.numel() > 0
            scale, offset, averages = self.coefficients(moments, x.shape[2] * x.shape[3], training)
            if training:
                finite, moved = ops.update_averages(averages)
                self.num_batches_tracked += moved
                self.finite = finite if self.finite is None else self.finite & finite
            return ops.group_affine(x, moments.shift, None, scale, offset, link=moments.link)

    def coefficients(
        self, moments: ops.Moments, positions: int, training: bool, whole: WholeBatch | None = None
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor, float | Tensor]]]:
        """SN as ``a_n z + b_n`` with z = x - shift.

        Args:
            moments: of z.
            positions: H·W.
            training: whether BN's part takes the statistics of the batch, which then has values.
            whole: those of all processes, in training, to take instead of this one's.

        Returns:
            a_n and b_n, both (N, C), and what moves the buffers; see :func:`running_averages`.
        """
        averages, shift = [], moments.shift
        if whole is not None:
            mean, variance = whole.about(shift)
            averages = running_averages(self, whole.mean.to(shift.dtype), variance, whole.count)
        elif training:
            mean, variance = ops.statistics_over_samples(moments.instance, shift)
            averages = running_averages(self, (mean + shift)[0], variance, moments.instance.shape[1] * positions)
        else:
            mean, variance = running_statistics(self, shift)
        weights = (p.to(shift.dtype) for p in (self.mean_weight, self.var_weight, self.weight, self.bias))
        return *ops.switchable_norm_affine(moments.instance, shift, mean, variance, *weights, self.eps), averages
