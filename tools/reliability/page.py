"""What the pages of these tools have in common."""
import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import mmengine

from ce_mm.files import replacing


def write(path: Path, text: str) -> None:
    """A page, with the machine and the versions at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(f"{text}\n\n{_conditions()}\n")


def _conditions() -> str:
    versions = f"PyTorch {importlib.metadata.version('torch')}, mmengine {mmengine.__version__}"
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return (
        f"{today}, on {os.cpu_count()} cores of a virtual machine without a GPU, Python {platform.python_version()}, "
        f"{versions}, gloo."
    )
