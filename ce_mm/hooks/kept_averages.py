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
        self._norms = norms
        self._tensors = self._averages()
        self._values = _one_vector(self._tensors)

    def replaced(self) -> bool:
        """Whether some norm has another tensor than it had."""
        return any(now is not then for now, then in zip(self._averages(), self._tensors, strict=True))

    @torch.no_grad()
    def put_back(self) -> Tensor:
        """Give what was kept to every norm that holds NaN or infinity, and keep what all of them hold then.

        Returns:
            Whether each norm was finite, a bool (norms,).
        """
        self._tensors = self._averages()
        values = _one_vector(self._tensors)
        sizes = tuple(sum(tensor.numel() for tensor in _averages(norm)) for norm in self._norms)
        owners = _owners(sizes, values.device)
        spoilt = values.new_zeros(len(self._norms)).index_add_(0, owners, values * 0)  # 0 or NaN
        finite = spoilt == 0
        self._values = torch.where(finite.index_select(0, owners), values, self._values.to(values.device))
        places = [_as_vector(tensor) for tensor in self._tensors]
        torch._foreach_copy_(places, self._values.split([place.numel() for place in places]))
        return finite

    def _averages(self) -> list[Tensor]:
        return [tensor for norm in self._norms for tensor in _averages(norm)]


def _averages(norm: _NormBase) -> list[Tensor]:
    weight = [norm.num_batches_tracked] if norm.momentum is None else []
    return [norm.running_mean, norm.running_var, *weight]


def _one_vector(tensors: list[Tensor]) -> Tensor:
    return torch.cat([_as_vector(tensor) for tensor in tensors])


def _as_vector(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() else tensor.view(1)


@lru_cache(maxsize=16)
def _owners(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Of which norm each value is."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)
