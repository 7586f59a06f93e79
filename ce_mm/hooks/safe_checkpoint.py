"""Checkpoints that a kill, a full disk or a power cut cannot spoil: ``--resume`` finds the last whole one.

mmengine writes a checkpoint, and the file ``last_checkpoint`` by which ``--resume`` finds it, straight to their names,
and removes an old checkpoint before its successor is written. The hook here goes by the name of mmengine's and takes
its settings, but keeps an order: the new checkpoint is whole and on disk; then ``last_checkpoint`` is replaced by one
that names it; then those go that it supersedes. Killed in between, the next run finds what it needs, and clears up.
"""
import re
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import BaseStorageBackend, FileClient, LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ce_mm.checkpoints.saving import discard, saving, unfinished

_LAST = "last_checkpoint"


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` on a local or mounted disk; other storage (s3://) has its own means of being whole.

    Takes mmengine's arguments. What a kill may leave besides a temporary file, which the next run removes, is one file
    of ``save_best`` too many, never one too few. Not covered: the copy that ``published_keys`` asks for.

    Raises:
        OSError: a checkpoint was not saved, for a full disk say; the text names it, and the last one is whole.
    """

    def before_train(self, runner: Runner) -> None:
        """Remove what a killed run left half-written or superseded, and what ``max_keep_ckpts`` no longer keeps."""
        hub = runner.message_hub
        kept = hub.get_info("keep_ckpt_ids", [])
        if surplus := kept[: -self.max_keep_ckpts] if self.max_keep_ckpts > 0 else []:
            # Not by mmengine, which would remove them here while the file last_checkpoint may name one of them.
            hub.update_info("keep_ckpt_ids", kept[len(surplus) :])
            names = [self.filename_tmpl.format(step) for step in surplus]
            hub.update_info("superseded_ckpts", [*hub.get_info("superseded_ckpts", []), *names])
        super().before_train(runner)
        if runner.iter > 0 and "last_ckpt" in hub.runtime_info:
            # mmengine forgets it, and would not save again with a new best that comes before the next checkpoint.
            self.last_ckpt = self._path(Path(hub.get_info("last_ckpt")).name)
        if is_main_process():
            if self._is_local():
                self._remove_unfinished(runner)
            superseded = hub.get_info("superseded_ckpts", [])
            if any(self.file_backend.exists(self._path(name)) for name in superseded):
                self._name_last(runner, hub.get_info("last_ckpt"))  # a run may start from a newer one than it names
                self._remove(map(self._path, superseded))

    def _remove_unfinished(self, runner: Runner) -> None:
        template = ".*".join(re.escape(part) for part in re.split(r"\{[^{}]*\}", self.filename_tmpl))
        checkpoint, last = re.compile(f"{template}|best_.*"), Path(runner.work_dir, _LAST)
        for left_over in Path(self.out_dir).glob(".*.tmp"):
            if checkpoint.fullmatch(left_over.name.removeprefix(".").removesuffix(".tmp")):
                discard(left_over)
        discard(unfinished(last))

    def _save_checkpoint(self, runner: Runner) -> None:
        super()._save_checkpoint(self._that_saves_whole(runner))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """As mmengine's, but the previous best stays until the new one, and the checkpoint that knows it, are whole."""
        backend, saves = self.file_backend, self._that_saves_whole(runner)
        self.file_backend = later = _RemovesLater(backend)
        try:
            super()._save_best_checkpoint(saves, metrics)
        finally:
            self.file_backend = backend
        if is_main_process():
            best = vars(self).get("best_ckpt_path_dict", {}).values() or [vars(self).get("best_ckpt_path")]
            self._remove(path for path in later.waiting if path not in best)

    def _save_checkpoint_with_step(self, runner: "Runner | _SavesWhole", step: int, meta: dict) -> None:
        """In place of mmengine's: it removes first, saves next, and writes ``last_checkpoint`` in place."""
        superseded = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                superseded.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self._path(filename)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.message_hub.update_info("superseded_ckpts", superseded)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            self._name_last(runner, self.last_ckpt)
            self._remove(map(self._path, superseded))

    def _is_local(self) -> bool:
        backend = self.file_backend
        return isinstance(backend.client if isinstance(backend, FileClient) else backend, LocalBackend)

    def _that_saves_whole(self, runner: Runner) -> "Runner | _SavesWhole":
        return _SavesWhole(runner) if self._is_local() else runner

    def _path(self, name: str) -> str:
        return self.file_backend.join_path(self.out_dir, name)

    def _name_last(self, runner: "Runner | _SavesWhole", path: str) -> None:
        with saving(Path(runner.work_dir, _LAST)) as temporary:
            temporary.write_text(path)

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)


class _SavesWhole:
    """A runner, but for how it saves."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        path = Path(out_dir, filename)
        with saving(path) if is_main_process() else nullcontext(unfinished(path)) as temporary:
            self._runner.save_checkpoint(out_dir, str(temporary.relative_to(out_dir)), *args, **kwargs)
            if temporary.is_dir():  # with a part from every rank
                barrier()


class _RemovesLater:
    """A file backend, but for when it removes."""

    def __init__(self, backend: BaseStorageBackend | FileClient) -> None:
        self._backend = backend
        self.waiting = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.waiting.append(path)

    rmtree = remove
