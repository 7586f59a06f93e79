"""A resumed training is the one that was interrupted, bit for bit: its random numbers depend on the step alone.

A checkpoint of mmengine holds the weights and the states of optimizer, schedulers, scaler and EMA, but not those of the
random generators, and without a seed in the config a resumed run shuffles anew. With this hook every step and batch is
seeded by the training's seed and its own number, so that there is nothing to keep but the seed, and validation, workers
(persistent or not) and the moment of the kill change nothing.
"""
import logging
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ce_mm.hooks.seeded_batches import PlacingSampler, seed_batches, skips
from ce_mm.hooks.seeding import seed_generators

_STEPS, _BATCHES, _BEFORE_EPOCH = range(3)


class StepSeedsHook(Hook):
    """Seeds Python's, NumPy's and PyTorch's generators before every step and, where it is made, every batch.

    Bit-identical on the CPU; on GPUs as far as their kernels are deterministic (``randomness.deterministic``). Says so
    in the log where it cannot hold:

    * a checkpoint inside an epoch of an epoch-based training: mmengine begins that epoch anew;
    * a checkpoint between two steps of an optimizer that accumulates gradients: they are not saved;
    * batches made by workers from a data set that is iterated or takes no attributes, a batch sampler that is not built
      on a sampler, or a sampler of other things than whole numbers; or by a loader that is not PyTorch's.

    What only a validation knows is not said: killed before the validation of an epoch ended, mmengine does not make up
    for it, and a schedule (ReduceOnPlateau) or best checkpoint that depends on it may differ.
    """

    priority = "VERY_HIGH"  # before anyone draws a number

    def __init__(self) -> None:
        self.resumed_sampler_seed = None
        self.sampler = None
        self.unplaced_is_news = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save what mmengine forgets: the seed by which the sampler shuffles, which may not be the runner's."""
        checkpoint["meta"]["sampler_seed"] = next((s.seed for s in _seeded_samplers(runner.train_dataloader)), None)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep it until it is known whether the training goes on from here."""
        meta = checkpoint.get("meta")  # of any kind, where the checkpoint was not made here
        seed = meta.get("sampler_seed") if isinstance(meta, dict) else None
        self.resumed_sampler_seed = seed if isinstance(seed, int) else None

    def before_train(self, runner: Runner) -> None:
        """Shuffle as before, place the batches, and say in which cases the run will differ."""
        loader = runner.train_dataloader
        if runner.iter > 0:
            if self.resumed_sampler_seed is not None:
                for sampler in _seeded_samplers(loader):
                    sampler.seed = self.resumed_sampler_seed
            self._warn_of_unfinished(runner)
        self.sampler = seed_batches(loader, runner.seed, _BATCHES, get_rank())
        self.unplaced_is_news = not isinstance(loader, DataLoader) or loader.num_workers > 0
        self._warn_of_unplaced()

    def before_train_epoch(self, runner: Runner) -> None:
        """Number the indices of this epoch; an iteration-based training is one."""
        seed_generators(runner.seed, _BEFORE_EPOCH, runner.iter, get_rank())
        if self.sampler is None:
            return
        loader = runner.train_dataloader
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            self.sampler.start = 0
            self.sampler.drawn = runner.iter * loader.batch_sampler.batch_size if skips(loader) else 0
        else:
            self.sampler.start, self.sampler.drawn = runner.iter, 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the step: augmentation of the batch, dropout, sampling of proposals."""
        self._warn_of_unplaced()
        seed_generators(runner.seed, _STEPS, runner.iter, get_rank())

    def _warn_of_unplaced(self) -> None:
        if self.unplaced_is_news and (self.sampler is None or self.sampler.unplaced):
            self.unplaced_is_news = False
            _warn("The batches' random numbers depend on the workers' history here (an iterable data set or one with "
                  "__slots__, a batch sampler without a sampler, a sampler of other things than whole numbers, or a "
                  "loader that is not PyTorch's): after a resume they will differ; with PyTorch's loader and "
                  "num_workers=0 they do not.")

    def _warn_of_unfinished(self, runner: Runner) -> None:
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)  # another may have a loader without a length
        expected = runner.epoch * len(runner.train_dataloader) if by_epoch else runner.iter
        if runner.iter != expected:
            _warn(f"This run goes on from epoch {runner.epoch} and iteration {runner.iter}, but so many epochs have "
                  f"{expected} iterations here. Either the checkpoint is from inside an epoch, which mmengine begins "
                  "anew (save with by_epoch=True), or the batches are others: it will not be the run that was "
                  "interrupted.")
        accumulated = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        if runner.iter % accumulated:
            _warn(f"This run goes on between two steps of the optimizer, from iteration {runner.iter}, and gradients "
                  f"add up over {accumulated}; those before it are lost. Save every multiple of {accumulated}.")


def _seeded_samplers(loader: DataLoader) -> list:
    batches = getattr(loader, "batch_sampler", None)
    samplers = [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]
    samplers = [s.sampler if isinstance(s, PlacingSampler) else s for s in samplers]
    return [s for s in samplers if isinstance(getattr(s, "seed", None), int)]


def _warn(text: str) -> None:
    print_log(text, logger="current", level=logging.WARNING)
