"""What a training step sends between processes: every collective, counted as it happens in a step under DDP.

The processes are real, on the CPU with gloo, and the network is wrapped as MMEngine wraps it. The sizes of the messages
depend on the network alone, neither on its pictures nor on the device, so a small picture and two processes do.
"""
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from tools.evidence.scaling.sync_batch_norm_on_cpu import sync_batch_norm_on_cpu

#: What torch.distributed's operators are called here, and which argument holds what a process contributes.
_KINDS = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "allgather_": ("all_gather", 1),
    "_allgather_base_": ("all_gather", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "broadcast_": ("broadcast", 0),
}


@dataclass(frozen=True)
class Collective:
    """One call that all processes make together."""

    kind: str  #: 'all_reduce', 'all_gather', 'reduce_scatter' or 'broadcast'
    elements: int  #: that this process contributes
    bytes: int  #: of these
    phase: str  #: 'forward' or 'backward'
    purpose: str  #: 'gradients' of the parameters, in DDP's buckets; or 'statistics', all that layers exchange


class CollectiveRecorder(TorchDispatchMode):
    """Writes down every collective of torch.distributed that this thread starts inside the block.

    It sees the calls of C++ too, such as DDP's. Whoever uses it sets ``phase`` and ``purpose``.

    Raises:
        NotImplementedError: a collective that is not known here, so that none goes uncounted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[Collective] = []
        self.phase = "forward"
        self.purpose = "statistics"

    def __torch_dispatch__(
        self, operator: Any, types: tuple, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator, and write it down if it is a collective."""
        if operator.namespace in ("c10d", "_c10d_functional"):
            name = operator._schema.name.split("::")[1]
            if operator.namespace != "c10d" or name not in _KINDS:
                raise NotImplementedError(
                    f"{operator} is none of the collectives that are counted here: {', '.join(_KINDS)}"
                )
            kind, place = _KINDS[name]
            tensors = list(_tensors(args[place]))
            elements = sum(tensor.numel() for tensor in tensors)
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.collectives.append(Collective(kind, elements, size, self.phase, self.purpose))
        return operator(*args, **(kwargs or {}))

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Inside, collectives are those of DDP."""
        self.purpose = "gradients"
        try:
            yield
        finally:
            self.purpose = "statistics"


def _tensors(value: Tensor | Iterable) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for each in value:
            yield from _tensors(each)


def training_steps(
    networks: Mapping[str, Callable[[], nn.Module]], shape: tuple[int, int, int, int], processes: int = 2
) -> dict[str, list[Collective]]:
    """The collectives of one training step of each network, in their order, counted in processes of their own.

    The step is the third: DDP learns in the first in what order gradients come, and fills its buckets anew in the
    second. Its options are MMEngine's, which does not send buffers (``broadcast_buffers=False``).

    Args:
        networks: makes each network, in every process the same; picklable, so no lambdas. A network takes a batch of
            pictures and gives a tensor or several.
        shape: N, C, H, W of each process's batch.
        processes: how many.

    Raises:
        RuntimeError: the processes did not make the same calls.
        torch.multiprocessing.ProcessRaisedException: a network does not run; with its own error.
    """
    with tempfile.TemporaryDirectory() as folder:
        start(_count, processes, dict(networks), shape, processes, folder)
        records = [(Path(folder) / str(rank)).read_text(encoding="utf-8") for rank in range(processes)]
    if len(set(records)) > 1:
        raise RuntimeError("the processes did not make the same collective calls in a step; look at the networks")
    return {name: [Collective(**fields) for fields in found] for name, found in json.loads(records[0]).items()}


def start(function: Callable[..., None], processes: int, *args: Any) -> None:
    """Call ``function(rank, *args)``, of a module's top level, in each of some processes, and wait for them.

    They are forked from a server that has imported everything once, so that they start in a moment.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the traceback of a process that failed.
    """
    forkserver.set_forkserver_preload(["ce_mm"])
    mp.start_processes(function, args, processes, start_method="forkserver")


@contextmanager
def process_group(rank: int, processes: int, folder: str) -> Iterator[None]:
    """torch.distributed with gloo among processes of this machine, which meet through a file in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _count(
    rank: int,
    networks: dict[str, Callable[[], nn.Module]],
    shape: tuple[int, int, int, int],
    processes: int,
    folder: str,
) -> None:
    # PyTorch 2.14 has another name for an option of DistributedDataParallel, which those before do not know.
    warnings.filterwarnings("ignore", ".broadcast_buffers. is deprecated", FutureWarning)
    with process_group(rank, processes, folder):
        progress = tqdm(networks.items(), "counting messages", disable=True if rank else None, leave=False)
        found = {name: [asdict(each) for each in _step(build(), shape)] for name, build in progress}
    (Path(folder) / str(rank)).write_text(json.dumps(found), encoding="utf-8")


def _step(network: nn.Module, shape: tuple[int, int, int, int]) -> list[Collective]:
    recorder = CollectiveRecorder()

    def hook(group: dist.ProcessGroup | None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        with recorder.gradients():
            return allreduce_hook(group, bucket)

    with sync_batch_norm_on_cpu():
        ddp = DistributedDataParallel(network.train(), broadcast_buffers=False)
        ddp.register_comm_hook(None, hook)
        for _ in range(2):
            _loss(ddp(torch.randn(shape))).backward()
        with recorder:
            loss = _loss(ddp(torch.randn(shape)))
            recorder.phase = "backward"
            loss.backward()
    return recorder.collectives


def _loss(outputs: Tensor | Iterable) -> Tensor:
    return sum(output.float().mean() for output in _tensors(outputs))


@dataclass(frozen=True)
class Total:
    """Collectives together."""

    calls: int
    bytes: int  #: that each process contributes


def total(collectives: Iterable[Collective], **fields: str) -> Total:
    """Calls and bytes of those collectives whose fields have the given values, such as ``phase='forward'``."""
    found = [each for each in collectives if all(getattr(each, name) == value for name, value in fields.items())]
    return Total(len(found), sum(each.bytes for each in found))
