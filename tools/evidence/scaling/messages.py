"""What a training step sends between processes, counted in a real step under DDP, wrapped as MMEngine wraps a network.

The sizes of the messages depend on the network alone, neither on its pictures, its device nor the number of processes.
So one process on a CPU takes the step, with small pictures, in PyTorch's fake process group: it believes to be one of
two, and what it sends reaches nobody. PyTorch's SyncBatchNorm does not run on CPUs. Its autograd function runs as it
is, with all its collectives; the five operators between them are done by stand-ins, which give shapes and no values.
"""
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as SyncBatchNormFunction
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

#: What torch.distributed's operators are called here, and which argument holds what a process contributes.
_KINDS = {"allreduce_": ("all_reduce", 0), "_allgather_base_": ("all_gather", 1)}

_aten = torch.ops.aten
_STAND_INS: dict[Any, Callable] = {
    _aten.batch_norm_stats.default: lambda x, eps: (x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])),
    _aten.batch_norm_gather_stats_with_counts.default: lambda x, means, *_: (means[0].clone(), means[0].clone()),
    _aten.batch_norm_elemt.default: lambda x, *_: torch.zeros_like(x),
    _aten.batch_norm_backward_reduce.default: lambda dy, x, mean, *_: tuple(torch.zeros_like(mean) for _ in range(4)),
    _aten.batch_norm_backward_elemt.default: lambda dy, *_: torch.zeros_like(dy),
}


@dataclass(frozen=True)
class Message:
    """One call that all processes make together."""

    kind: str  #: 'all_reduce' or 'all_gather'
    bytes: int  #: that each process contributes
    phase: str  #: 'forward' or 'backward'
    purpose: str  #: 'gradients' of the parameters, in DDP's buckets; or 'statistics', all that layers exchange


class _Recorder(TorchDispatchMode):
    """Writes down what layers exchange inside the block, in the phases of a step that are named to it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self.phase: str | None = None  # in which nothing is written down

    def __torch_dispatch__(
        self, operator: Any, types: tuple, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.phase and operator.namespace in ("c10d", "_c10d_functional"):
            name = operator._schema.name.split("::")[1]
            if operator.namespace != "c10d" or name not in _KINDS:
                raise NotImplementedError(f"{operator} is none of the collectives counted here: {', '.join(_KINDS)}")
            kind, place = _KINDS[name]
            size = sum(tensor.nbytes for tensor in _tensors(args[place]))
            self.messages.append(Message(kind, size, self.phase, "statistics"))
        if operator is torch.ops.c10d._allgather_base_.default:  # of which the fake group takes a flat output alone
            args = (args[0].view(-1), *args[1:])
        return _STAND_INS.get(operator, operator)(*args, **(kwargs or {}))

    def gradients(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """In place of DDP's all-reduce of a bucket."""
        if self.phase:
            self.messages.append(Message("all_reduce", bucket.buffer().nbytes, self.phase, "gradients"))
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future


def messages_of_a_step(network: nn.Module, shape: tuple[int, int, int, int]) -> list[Message]:
    """The messages of one training step, in their order.

    The step is the third: DDP learns in the first in what order gradients come, and fills its buckets anew in the
    second. Its options are MMEngine's, which does not send buffers (``broadcast_buffers=False``).

    Args:
        network: takes a batch of pictures and gives a tensor or several.
        shape: N, C, H, W of the batch.

    Raises:
        NotImplementedError: the network makes a collective call that is not known here, so that none goes uncounted.
    """
    recorder = _Recorder()
    with _one_of_two():
        ddp = DistributedDataParallel(network.train(), broadcast_buffers=False)
        ddp.register_comm_hook(None, recorder.gradients)
        for forward, backward in ((None, None), (None, None), ("forward", "backward")):
            with recorder:
                recorder.phase = forward
                loss = sum(output.float().mean() for output in _tensors(ddp(torch.randn(shape))))
                recorder.phase = backward
                loss.backward()
    return recorder.messages


@contextmanager
def _one_of_two() -> Iterator[None]:
    # PyTorch 2.14 has another name for an option of DistributedDataParallel, which those before do not know.
    warnings.filterwarnings("ignore", ".broadcast_buffers. is deprecated", FutureWarning)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with (
            mock.patch.object(nn.SyncBatchNorm, "forward", _sync_batch_norm),
            mock.patch.object(DistributedDataParallel, "_passing_sync_batchnorm_handle"),
        ):
            yield
    finally:
        dist.destroy_process_group()


def _sync_batch_norm(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """PyTorch's forward without its check of the device."""
    return SyncBatchNormFunction.apply(
        x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, norm.momentum, dist.group.WORLD, 2
    )


def _tensors(value: Tensor | Iterable) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for each in value:
            yield from _tensors(each)


@dataclass(frozen=True)
class Total:
    """Messages together."""

    calls: int
    bytes: int  #: that each process contributes


def total(messages: Iterable[Message], **fields: str) -> Total:
    """Calls and bytes of those messages whose fields have the given values, such as ``phase='forward'``."""
    found = [each for each in messages if all(getattr(each, name) == value for name, value in fields.items())]
    return Total(len(found), sum(each.bytes for each in found))
