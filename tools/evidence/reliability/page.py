"""What the pages of these tools have in common."""
import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import mmengine
import torch
import torch.distributed as dist
from mmengine.device import get_device

from ce_mm.files import replacing


def write(path: Path, text: str) -> None:
    """A page, with the machine and the versions at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(f"{text}\n\n{conditions()}\n")


def conditions() -> str:
    """The day, the machine and the versions, as a line."""
    versions = f"PyTorch {importlib.metadata.version('torch')}, mmengine {mmengine.__version__}"
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    gpus = torch.cuda.device_count()
    accelerator = f"{gpus} × {torch.cuda.get_device_name()}" if gpus else "no GPU"
    backend = dist.get_default_backend_for_device(get_device())
    python = platform.python_version()
    return f"{today}, on {os.cpu_count()} cores, {accelerator}, Python {python}, {versions}, {backend}."
