"""The running averages of norms as they were before a step, to go back to where the step left NaN or infinity.

PyTorch's norms move their averages by every batch. The values are kept, not the tensors: others replace those
(PreciseBNHook, ``model.to``). All norms of a device make one vector, so that a hundred of them take as few calls of
PyTorch as one does, and no call waits for the device.
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
        norms: with running averages, all on one device and of one type. What they hold now is kept.
    """

    def __init__(self, norms: Sequence[_NormBase]) -> None:
        self._places = [(norm, name) for norm in norms for name in _averages(norm)]
        self._tensors = self._look_up()
        self._values = torch.cat(self._vectors())
        lengths = (sum(getattr(norm, name).numel() for name in _averages(norm)) for norm in norms)
        self._owners = _owners(tuple(lengths), self._values.device)
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
        vectors = self._vectors()
        values = torch.cat(vectors)
        kept, owners = self._values.to(values.device), self._owners.to(values.device)
        spoilt = values.new_zeros(self._number).index_add_(0, owners, values * 0)  # 0 or NaN
        finite = spoilt == 0
        self._values = torch.where(finite.index_select(0, owners), values, kept)
        torch._foreach_copy_(vectors, self._values.split([vector.numel() for vector in vectors]))
        return finite

    def _look_up(self) -> list[Tensor]:
        return [getattr(norm, name) for norm, name in self._places]

    def _vectors(self) -> list[Tensor]:
        return [tensor if tensor.dim() else tensor.view(1) for tensor in self._tensors]


def _averages(norm: _NormBase) -> list[str]:
    weight = ["num_batches_tracked"] if norm.momentum is None else []
    return ["running_mean", "running_var", *weight]


@lru_cache(maxsize=16)
def _owners(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Of which norm each value is."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device)
