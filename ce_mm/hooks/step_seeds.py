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

from ce_mm.hooks.seeding import seed_batches, seed_generators

_STEPS, _BATCHES, _BEFORE_EPOCH = range(3)


class StepSeedsHook(Hook):
    """Seeds Python's, NumPy's and PyTorch's generators before every step and, where it is made, every batch.

    Bit-identical on the CPU; on GPUs as far as their kernels are deterministic (``randomness.deterministic``). Says so
    in the log where it cannot hold:

    * a checkpoint inside an epoch of an epoch-based training: mmengine begins that epoch anew;
    * a checkpoint between two steps of an optimizer that accumulates gradients: they are not saved;
    * batches made by workers from a data set that is iterated or takes no attributes, or by a loader that is not
      PyTorch's.

    What only a validation knows is not said: killed before the validation of an epoch ended, mmengine does not make up
    for it, and a schedule (ReduceOnPlateau) or best checkpoint that depends on it may differ.
    """

    priority = "VERY_HIGH"  # before anyone draws a number

    def before_train(self, runner: Runner) -> None:
        """Shuffle as before, number the batches, and say in which cases the run will differ."""
        loader, hub = runner.train_dataloader, runner.message_hub
        samplers = _seeded_samplers(loader)
        if runner.iter > 0:  # resumed, with what the hub knew; but mmengine would shuffle by a new seed
            seed = hub.runtime_info.get("sampler_seed")
            for sampler in samplers if isinstance(seed, int) else ():
                sampler.seed = seed
            self._warn_of_unfinished(runner)
        for sampler in samplers[:1]:
            hub.update_info("sampler_seed", sampler.seed)
        self.batches = seed_batches(loader, runner.seed, _BATCHES, get_rank())
        if self.batches is None and not (isinstance(loader, DataLoader) and loader.num_workers == 0):
            _warn("The batches' random numbers depend on the workers' history here (an iterable data set, one without "
                  "attributes, or a loader that is not PyTorch's): after a resume they will differ; with PyTorch's "
                  "loader and num_workers=0 they do not.")

    def before_train_epoch(self, runner: Runner) -> None:
        """Give batches the number of their iteration; an iteration-based training is one epoch."""
        seed_generators(runner.seed, _BEFORE_EPOCH, runner.iter, get_rank())
        if self.batches is None:
            return
        loop, self.batches.next = runner.train_loop, runner.iter
        if isinstance(loop, IterBasedTrainLoop):
            iterator = loop.dataloader_iterator
            if getattr(iterator, "_iterator", None) is not None:  # the original mmengine's begins as the loop is built
                loop.dataloader_iterator = type(iterator)(loop.dataloader)
            if not hasattr(loop.dataloader.sampler, "skip"):  # then mmengine draws those that the training has had
                self.batches.next = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the step: augmentation of the batch, dropout, sampling of proposals."""
        seed_generators(runner.seed, _STEPS, runner.iter, get_rank())

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
    return [sampler for sampler in samplers if isinstance(getattr(sampler, "seed", None), int)]


def _warn(text: str) -> None:
    print_log(text, logger="current", level=logging.WARNING)
