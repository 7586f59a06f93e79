"""The running averages of norms as they were before a step, to go back to where the step left NaN or infinity.

All norms together make one vector, so that a hundred of them take as few calls of PyTorch as one does, and no call
waits for the device.
"""
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase


class KeptAverages:
    """Running means and variances, and the number of batches where a norm weighs by it (``momentum=None``).

    A norm goes back as a whole: where its variance is infinite, its mean is of the same bad batch.

    Args:
        norms: with running averages, all on one device. What they hold now is kept.
    """

    def __init__(self, norms: Sequence[_NormBase]) -> None:
        weighs = [(norm.num_batches_tracked,) if norm.momentum is None else () for norm in norms]
        of_each = [(norm.running_mean, norm.running_var, *number) for norm, number in zip(norms, weighs, strict=True)]
        self._tensors = torch.atleast_1d([tensor for tensors in of_each for tensor in tensors])
        self._values = torch.cat(self._tensors)
        self._owners = _owners(tuple(sum(map(Tensor.numel, each)) for each in of_each), self._values.device)
        self._number = len(norms)

    @torch.no_grad()
    def put_back(self) -> Tensor:
        """Give what was kept to every norm that holds NaN or infinity.

        Returns:
            Whether each norm was finite, a bool (norms,).
        """
        values = torch.cat(self._tensors)
        finite = values.new_zeros(self._number).index_add_(0, self._owners, values * 0) == 0  # a sum of 0 or NaN
        values = torch.where(finite.index_select(0, self._owners), values, self._values)
        torch._foreach_copy_(self._tensors, values.split([tensor.numel() for tensor in self._tensors]))
        return finite


@lru_cache(maxsize=16)
def _owners(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Of which norm each value is."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)
