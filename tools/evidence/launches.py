"""How many calls of PyTorch a training step of one layer takes beside the passes over its map.

On a GPU each is a launch, and of tensors so small the launches are what takes time. Counted on a CPU, in plain calls:
which calls there are does not depend on the device. Prints the rows of docs/training_gpu.md.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from ce_mm import ops
from ce_mm.layers import CENorm
from tools.evidence.benchmark import backends
from tools.evidence.pages import table

CHANNELS = 64
CASES = {
    "BN, both branches": {},
    "BN, `group_size=32`": dict(group_size=32),
    "BN, decorrelation alone": dict(branches=("bd",)),
    "BN, reweighting alone": dict(branches=("ir",)),
    "BN, `max_pool=True`": dict(max_pool=True),
    "BN, `sync=True`": dict(sync=True),
    "SyncBN": dict(norm=dict(type="SyncBN")),
    "GN": dict(norm=dict(type="GN", num_groups=32)),
    "LN": dict(norm=dict(type="LN")),
    "IN": dict(norm=dict(type="IN", affine=True)),
    "SN": dict(norm=dict(type="SN")),
}


class Calls(NamedTuple):
    """Of a training step."""

    passes: int  #: over the map, or over its max pool
    others: int  #: without views and fresh memory, which launch nothing


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.passes = self.others = 0

    def __torch_dispatch__(self, operator: Any, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        if operator.namespace == "ce_mm":
            self.passes += 1
        elif not operator.is_view and "empty" not in operator.name():
            self.others += 1
        return operator(*args, **(kwargs or {}))


def calls_of_a_step(**arguments: Any) -> Calls:
    """Those of the second step of a CENorm with these arguments, on a map of 4×64×8×8, with ReLU."""
    layer, x = CENorm(CHANNELS, **arguments), torch.randn(4, CHANNELS, 8, 8, requires_grad=True)
    dy = torch.randn_like(x)
    with backends.turn(backends.PLAIN), _one_of_two():
        for counter in (_Counter(), _Counter()):  # in the first, gradients are made, not added to
            with counter:
                layer(x, rectifier=ops.RELU).backward(dy)
            for tensor in (x, *layer.parameters()):
                tensor.grad = None
    return Calls(counter.passes, counter.others)


@contextmanager
def _one_of_two() -> Iterator[None]:
    """As one of two processes, whose messages reach nobody."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def rows() -> str:
    """The table of the page."""
    counted = {case: calls_of_a_step(**arguments) for case, arguments in CASES.items()}
    return table(["", "passes", "other calls"], ([case, *map(str, calls)] for case, calls in counted.items()))


if __name__ == "__main__":
    print(rows())
