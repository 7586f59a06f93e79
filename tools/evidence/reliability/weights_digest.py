"""The hook that tells whether all processes end with the same weights."""
import hashlib
from collections.abc import Iterable
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor


@HOOKS.register_module()
class WeightsDigestHook(Hook):
    """Writes, at the end, SHA-256 of parameters and of buffers into ``weights_rank<r>.txt`` of the work folder."""

    priority = "VERY_LOW"

    def after_train(self, runner: Runner) -> None:
        """Write the two digests, a line each."""
        model = runner.model
        lines = f"parameters {_digest(model.parameters())}\nbuffers {_digest(model.buffers())}\n"
        Path(runner.work_dir, f"weights_rank{runner.rank}.txt").write_text(lines)


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
