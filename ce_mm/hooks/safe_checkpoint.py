"""Checkpoints that a kill, a full disk or a power cut cannot spoil: ``--resume`` finds the last whole one.

mmengine writes a checkpoint, and the file ``last_checkpoint`` by which ``--resume`` finds it, straight to their names,
and removes an old checkpoint before its successor is written. The hook here takes the settings of mmengine's, but keeps
an order: the new checkpoint is whole and on disk; then ``last_checkpoint`` is replaced by one that names it; then those
go that it supersedes. Killed in between, the next run finds what it needs, and clears up.

A checkpoint is data, also in what it says of files: a run removes by its own templates in its own folder, and what the
checkpoint of another folder says of that folder means nothing in this one.
"""
import os
import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, broadcast_object_list, is_main_process
from mmengine.fileio import BaseStorageBackend, FileClient, LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ce_mm.checkpoints.resuming import LAST, check_resumable, latest_checkpoint
from ce_mm.checkpoints.saving import discard, new_run, remove_unfinished, saving, unfinished


class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` on a local or mounted disk; other storage (s3://) has its own means of being whole.

    Takes mmengine's arguments. What a kill may leave besides a temporary file, which the next run removes, is one file
    of ``save_best`` too many, never one too few. Not covered: the copy that ``published_keys`` asks for.

    Raises:
        OSError: a checkpoint was not saved, for a full disk say; the text names it, and the last one is whole.
        CheckpointError: there is nothing to resume from where ``last_checkpoint`` says, or no way to resume from it.
    """

    def before_run(self, runner: Runner) -> None:
        """Let mmengine resume from what ``last_checkpoint`` means, also where its folder has been moved."""
        if not runner._has_loaded:
            runner._load_from = self._start(runner) or runner._load_from

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse what cannot be resumed from, before any of it is used."""
        if runner._resume and not runner._has_loaded:
            check_resumable(checkpoint, self._start(runner) or "the checkpoint to resume from")

    def before_train(self, runner: Runner) -> None:
        """Take over what is known of this folder, and remove what a killed run left half-written or superseded."""
        hub = runner.message_hub
        known = dict(hub.runtime_info)
        start = self._start(runner) or known.get("last_ckpt")
        hub.update_info("keep_ckpt_ids", [])  # or mmengine would remove here what last_checkpoint may name
        super().before_train(runner)
        if runner.iter == 0 or not self._lies_here(start):
            known = {}
        if "last_ckpt" in known:  # mmengine forgets it, and would not save a checkpoint that knows of a new best
            self.last_ckpt = self._own(known["last_ckpt"], self._is_step)
        self._take_over_best(runner, known)
        steps = known.get("keep_ckpt_ids", [])
        surplus = steps[: -self.max_keep_ckpts] if self.max_keep_ckpts > 0 else []
        steps = steps[len(surplus) :]
        hub.update_info("keep_ckpt_ids", steps)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids.extend(steps)
        self._run = _agreed(new_run())
        if is_main_process():
            if self._is_local():
                for folder in {Path(self.out_dir), Path(runner.work_dir)}:
                    remove_unfinished(folder, lambda name: name == LAST or self._is_step(name) or self._is_best(name))
            self._remove_superseded(runner, [*known.get("superseded_ckpt_ids", []), *surplus])

    def _take_over_best(self, runner: Runner, known: dict) -> None:
        for metric in self.key_indicators if self.save_best else ():
            alone = len(self.key_indicators) == 1
            entry = "best_ckpt" if alone else f"best_ckpt_{metric}"
            path = self._own(known.get(entry), self._is_best)
            if alone:
                self.best_ckpt_path = path
            else:
                self.best_ckpt_path_dict[metric] = path
            if entry in runner.message_hub.runtime_info:
                runner.message_hub.update_info(entry, path)

    def _remove_superseded(self, runner: Runner, steps: list[int]) -> None:
        paths = {self._path(self.filename_tmpl.format(step)) for step in steps} - {self.last_ckpt}
        if self.last_ckpt is not None and any(map(self._exists, paths)):
            self._name_last(runner)  # a run may start from a newer one than it names
            self._remove(paths)

    def _save_checkpoint(self, runner: Runner) -> None:
        super()._save_checkpoint(self._that_saves_whole(runner))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """As mmengine's, but the previous best stays until the new one, and the checkpoint that knows it, are whole."""
        if "file_backend" not in vars(self):
            return  # an evaluation by itself: there is no training whose best it could be
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
                superseded.append(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self._path(filename)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.message_hub.update_info("superseded_ckpt_ids", superseded)
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
            self._name_last(runner)
            self._remove({self._path(self.filename_tmpl.format(old)) for old in superseded} - {self.last_ckpt})

    def _publish_model(self, runner: Runner, ckpt_path: str | None) -> None:
        if ckpt_path is not None:  # as of a metric that has no best here
            super()._publish_model(runner, ckpt_path)

    def _start(self, runner: Runner) -> str | None:
        """The checkpoint that a run was told to go on from; None if it was told of none."""
        if not runner._resume or isinstance(runner._resume, str):  # a path: FlexibleRunner's
            return runner._resume or None
        return runner._load_from or latest_checkpoint(runner.work_dir, self.out_dir)

    def _lies_here(self, path: str | None) -> bool:
        """Whether a checkpoint is among those of this run, which then are meant by what it says."""
        if path is None or not self._is_local():
            return path is not None and path == self._path(os.path.basename(path))
        return os.path.realpath(os.path.dirname(path)) == os.path.realpath(self.out_dir)

    def _own(self, path: str | None, is_ours: Callable[[str], bool]) -> str | None:
        """The checkpoint of that name in this run's folder, if it is one of its own and there."""
        name = os.path.basename(path or "")
        return self._path(name) if is_ours(name) and self._exists(self._path(name)) else None

    def _is_step(self, name: str) -> bool:
        """Whether such a run saves a step under that name: ``epoch_7.pth``."""
        return name in self._steps(name)

    def _is_best(self, name: str) -> bool:
        """Whether such a run saves a best checkpoint under that name: ``best_acc_epoch_7.pth``."""
        return name.startswith("best_") and name.endswith(tuple(f"_{step}" for step in self._steps(name)))

    def _steps(self, name: str) -> list[str]:
        """What the template makes of each number in a name, and of one that it leaves out."""
        numbers = [0, *map(int, re.findall(r"\d{1,18}", name))]
        return [self.filename_tmpl.format(number).replace("/", "_") for number in numbers]

    def _is_local(self) -> bool:
        backend = self.file_backend
        return isinstance(backend.client if isinstance(backend, FileClient) else backend, LocalBackend)

    def _that_saves_whole(self, runner: Runner) -> "Runner | _SavesWhole":
        return _SavesWhole(runner, self._run) if self._is_local() else runner

    def _path(self, name: str) -> str:
        return self.file_backend.join_path(self.out_dir, name)

    def _exists(self, path: str) -> bool:
        return self.file_backend.isfile(path) or self.file_backend.isdir(path)

    def _name_last(self, runner: "Runner | _SavesWhole") -> None:
        with saving(Path(runner.work_dir, LAST), self._run) as temporary:
            temporary.write_text(self.last_ckpt)

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            if self._is_local():
                discard(Path(path))
            elif self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)


def _agreed(value: str) -> str:
    """That of the first process, in all of them."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


class _SavesWhole:
    """A runner, but for how it saves."""

    def __init__(self, runner: Runner, run: str) -> None:
        self._runner, self._run = runner, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        path = Path(out_dir, filename)
        with saving(path, self._run) if is_main_process() else nullcontext(unfinished(path, self._run)) as temporary:
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
