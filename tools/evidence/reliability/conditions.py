"""The day, the machine and the versions that a trial was made with."""
import datetime
import importlib.metadata
import os
import platform

import mmengine
import torch
import torch.distributed as dist
from mmengine.device import get_device


def conditions() -> str:
    """Them as a line."""
    versions = f"PyTorch {importlib.metadata.version('torch')}, mmengine {mmengine.__version__}"
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    gpus = torch.cuda.device_count()
    accelerator = f"{gpus} × {torch.cuda.get_device_name()}" if gpus else "no GPU"
    backend = dist.get_default_backend_for_device(get_device())
    python = platform.python_version()
    return f"{today}, on {os.cpu_count()} cores, {accelerator}, Python {python}, {versions}, {backend}."
