"""The running averages of norms as they were before a step, to go back to where the step left NaN or infinity.

PyTorch's norms move their averages by every batch. The values are kept, not the tensors: others replace those
(PreciseBNHook). All norms together make one vector, so that a hundred of them take as few calls of PyTorch as one
does, and no call waits for the device.
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
        self._places = [
            (index, norm, name)
            for index, norm in enumerate(norms)
            for name in ("running_mean", "running_var", "num_batches_tracked")[: 3 if norm.momentum is None else 2]
        ]
        self._tensors = self._look_up()
        self._values = torch.cat(torch.atleast_1d(self._tensors))
        self._sizes = [tensor.numel() for tensor in self._tensors]
        self._owners = _owners(tuple(index for index, _, _ in self._places), tuple(self._sizes), self._values.device)
        self._number = len(norms)

    def replaced(self) -> bool:
        """Whether some norm has another tensor than it had."""
        return any(now is not then for now, then in zip(self._look_up(), self._tensors, strict=True))

    @torch.no_grad()
    def put_back(self) -> Tensor:
        """Give what was kept to every norm that holds NaN or infinity, and keep what all of them hold then.

        Returns:
            Whether each norm was finite, a bool (norms,).
        """
        self._tensors = self._look_up()
        vectors = torch.atleast_1d(self._tensors)
        values = torch.cat(vectors)
        finite = values.new_zeros(self._number).index_add_(0, self._owners, values * 0) == 0  # a sum of 0 or NaN
        self._values = torch.where(finite.index_select(0, self._owners), values, self._values)
        torch._foreach_copy_(vectors, self._values.split(self._sizes))
        return finite

    def _look_up(self) -> list[Tensor]:
        return [getattr(norm, name) for _, norm, name in self._places]


@lru_cache(maxsize=16)
def _owners(norms: tuple[int, ...], sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Of which norm each value is."""
    return torch.tensor(norms).repeat_interleave(torch.tensor(sizes)).to(device)
