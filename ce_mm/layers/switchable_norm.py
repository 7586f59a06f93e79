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
from ce_mm.layers.onlookers import is_captured, one_call
from ce_mm.ops import base_norms


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
        super().__init__(num_features, eps, affine=True, track_running_stats=True)
        self.momentum = momentum
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
        with ops.full_precision(x.device.type):
            base, learns = base_norms.SwitchableNorm(self), self.training and x.numel() > 0
            moments = ops.moments(x, 1, guess=base.guess, products=False, per_sample=True)
            known = ops.UNKNOWN if learns else ops.Statistics(*base.running(moments.shift))
            coefficients, found = ops.coefficients(moments, base, None, None, None, known)
            if learns:
                finite = base.learn(found, moments.shift)
                alone = x.is_cuda and is_captured()  # the flag before may be gone by a launch
                self.finite = finite if alone or self.finite is None else self.finite & finite
            return ops.group_affine(x, moments.shift, *coefficients, link=moments.link)
