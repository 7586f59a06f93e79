"""mmengine reads checkpoints through :mod:`ce_mm.checkpoints.reading`, whatever the scheme of their address.

On PyTorch 2.6 and later the original mmengine cannot read its own checkpoints back, and downloads with
weights_only=False; the OneDL one falls back to weights_only=False, and so runs whatever code a file brings.
"""
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import checkpoint
from torch.hub import load_state_dict_from_url

from ce_mm.checkpoints.reading import load_safely


def make_loading_safe() -> None:
    """Make every loader of mmengine's ``CheckpointLoader`` read safely; a second call does nothing.

    All of them (local files, http, torchvision, open-mmlab, mmcls, s3, petrel, pavi) end in ``torch.load`` or
    ``load_url``, looked up in the module ``mmengine.runner.checkpoint`` when called: replacing these two names there
    covers both distributions, and touches nobody else's ``torch.load``. The OneDL one has a function between, which
    changes the list of names that all threads allow; it is left out.
    """
    checkpoint.torch = _TorchThatReadsSafely()
    checkpoint.load_url = _load_url
    if hasattr(checkpoint, "_safe_torch_load"):
        checkpoint._safe_torch_load = checkpoint.torch.load


class _TorchThatReadsSafely:
    """torch, but for ``load``."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(f: Any, map_location: Any = None, weights_only: bool = True) -> Any:
        """``torch.load`` of a path or an open file, whatever ``weights_only`` asks for."""
        source = Path(f) if isinstance(f, str | os.PathLike) else f
        return _without_program(load_safely(torch.load, source, map_location=map_location))


def _load_url(url: str, **options: Any) -> Any:
    """Runs no code either; but what the file claims to hold is looked at for local files only."""
    return _without_program(load_safely(load_state_dict_from_url, url, **options))


def _without_program(checkpoint: Any) -> Any:
    """Drop meta['config'] of mmcv 1: ``Runner.resume`` runs that text as Python, to compare numbers of GPUs.

    mmengine itself writes meta['cfg'], and cannot resume what mmcv 1 wrote: nothing is lost.
    """
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("meta"), dict):
        checkpoint["meta"].pop("config", None)
    return checkpoint
