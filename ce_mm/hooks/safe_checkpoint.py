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
from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from string import Formatter
from typing import Any

from mmengine.dist import barrier, broadcast_object_list, is_main_process
from mmengine.fileio import FileClient, LocalBackend
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
        hub, start = runner.message_hub, self._start(runner)
        known = dict(hub.runtime_info)
        hub.update_info("keep_ckpt_ids", [])  # or mmengine would remove here what last_checkpoint may name
        super().before_train(runner)
        if start is None or os.path.realpath(os.path.dirname(start)) != os.path.realpath(self.out_dir):
            known = {}
        else:  # mmengine forgets it, and would not save a checkpoint that knows of a new best
            self.last_ckpt = self._path(os.path.basename(start))
        step, best = self._names()
        bests, entries = self._bests()
        for key, entry in entries.items():
            name = os.path.basename(known.get(entry) or "")
            bests[key] = self._path(name) if re.fullmatch(best, name) and self._exists(self._path(name)) else None
            hub.update_info(entry, bests[key])
        superseded = self._keep(runner, known.get("keep_ckpt_ids", []))
        run = [new_run()]
        broadcast_object_list(run)  # that of the first process, in all of them
        self._run = run[0]
        if is_main_process():
            if self._is_local():
                for folder in {Path(self.out_dir), Path(runner.work_dir)}:
                    remove_unfinished(folder, re.compile(f"{LAST}|{step}|{best}").fullmatch)
            if self.last_ckpt is not None and any(map(self._exists, superseded)):
                self._name_last(runner)  # a run may start from a newer one than it names
                self._remove(superseded)

    def _save_checkpoint(self, runner: Runner) -> None:
        super()._save_checkpoint(self._that_saves_whole(runner))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """As mmengine's, but the previous best stays until the new one, and the checkpoint that knows it, are whole."""
        if "file_backend" not in vars(self):
            return  # an evaluation by itself: there is no training whose best it could be
        bests, entries = self._bests()
        previous = {key: bests[key] for key in entries}
        bests |= dict.fromkeys(entries)  # for all that mmengine knows, there is none to remove
        super()._save_best_checkpoint(self._that_saves_whole(runner), metrics)
        bests |= {key: bests[key] or path for key, path in previous.items()}
        if is_main_process():
            self._remove({*previous.values()} - {None, *(bests[key] for key in entries)})

    def _save_checkpoint_with_step(self, runner: "Runner | _SavesWhole", step: int, meta: dict) -> None:
        """In place of mmengine's: it removes first, saves next, and writes ``last_checkpoint`` in place."""
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self._path(filename)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        superseded = self._keep(runner, dict.fromkeys([*vars(self).get("keep_ckpt_ids", []), step]))
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
            self._remove(superseded)

    def _publish_model(self, runner: Runner, ckpt_path: str | None) -> None:
        if ckpt_path is not None:  # as of a metric that has no best here
            super()._publish_model(runner, ckpt_path)

    def _start(self, runner: Runner) -> str | None:
        """The checkpoint that a run was told to go on from; None if it was told of none."""
        if not runner._resume or isinstance(runner._resume, str):  # a path: FlexibleRunner's
            return runner._resume or None
        return runner._load_from or latest_checkpoint(runner.work_dir, self.out_dir)

    def _keep(self, runner: "Runner | _SavesWhole", steps: Iterable[int]) -> set[str]:
        """Keep the newest of these steps, and return the paths of the others.

        A checkpoint says which steps there were as it was saved: a run that is killed before it has removed those that
        are too many leaves that to the next.
        """
        if self.max_keep_ckpts <= 0:
            return set()
        steps = list(steps)
        runner.message_hub.update_info("keep_ckpt_ids", steps)
        self.keep_ckpt_ids = deque(steps, self.max_keep_ckpts)
        return {self._path(self.filename_tmpl.format(old)) for old in steps[: -self.max_keep_ckpts]} - {self.last_ckpt}

    def _bests(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Where mmengine keeps the paths of the best checkpoints; each key there, and its entry in the message hub."""
        if not self.save_best:
            return {}, {}
        if len(self.key_indicators) == 1:
            return vars(self), {"best_ckpt_path": "best_ckpt"}
        return self.best_ckpt_path_dict, {metric: f"best_ckpt_{metric}" for metric in self.key_indicators}

    def _names(self) -> tuple[str, str]:
        """What such a run saves steps and bests under, as patterns: ``epoch_7.pth``, ``best_acc_epoch_7.pth``."""
        parts = Formatter().parse(self.filename_tmpl.replace("/", "_"))
        step = "".join(re.escape(text) + (r"\d+" if field is not None else "") for text, field, _, _ in parts)
        return step, f"best_.+_{step}"

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
