"""Several gloo processes on the CPU that check one thing together.

They are forked from a server that has imported everything once, so that they start in a moment.
"""
import importlib.util
import inspect
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = 120  # seconds, after which a check fails instead of hanging


def on_ranks(check: Callable[..., None], world_size: int, *args: Any) -> None:
    """Call ``check(rank, *args)``, a function of a module's top level, in each process of one group.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the traceback of a process that failed.
    """
    forkserver.set_forkserver_preload(["ce_mm", "mmengine.runner", "torch.distributed.fsdp"])
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):  # mmengine looks for a GPU when it is imported
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        processes = mp.start_processes(
            _in_group, (inspect.getfile(check), check.__name__, store, world_size, args), world_size, join=False,
            start_method="forkserver",
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not processes.join(timeout=1):
            if time.monotonic() > deadline:
                for process in processes.processes:
                    process.kill()
                raise TimeoutError(f"{check.__name__} did not end on {world_size} ranks")


def _in_group(rank: int, path: str, name: str, store: Path, world_size: int, args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))  # as a launcher does
    # By its path, as pytest's own name for a test module means nothing in another process.
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=PATIENCE / 2)
    )
    getattr(module, name)(rank, *args)
    dist.destroy_process_group()
