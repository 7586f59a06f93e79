"""What a training has besides CE where its config names this module in ``custom_imports``, as ``_base_/ce.py`` does.

Checkpoints that a kill cannot spoil, wherever the config says ``CheckpointHook`` (its settings are merged as ever);
launchers, DDP and FSDP that run without a GPU; and FSDP that resumes.
"""
from mmengine.registry import HOOKS
from mmengine.runner import _flexible_runner

from ce_mm.checkpoints.resuming import latest_checkpoint
from ce_mm.compat.fsdp_resume import make_fsdp_resume
from ce_mm.compat.without_gpu import launch_without_gpu
from ce_mm.hooks import SafeCheckpointHook

HOOKS.register_module(name="CheckpointHook", module=SafeCheckpointHook, force=True)
_flexible_runner.find_latest_checkpoint = latest_checkpoint  # its hooks are asked when it has loaded already
launch_without_gpu()
make_fsdp_resume()
