"""Random numbers that depend on a place in the training, and on nothing that came before it.

States of generators would have to be kept for every process, data loading workers included, which are batches ahead of
the training. A place is known wherever a training is resumed, whatever the number of workers.
"""
import random

import numpy as np
import torch
from mmengine.device import get_device


def seed_generators(*place: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch, on all devices.

    Args:
        place: whole numbers of at least 0, first the training's seed. Each place has numbers of its own.
    """
    sequence = np.random.SeedSequence((len(place), *place))  # to which (1,) and (1, 0) would be one
    for_python, for_numpy, for_torch = sequence.generate_state(3).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)
    if get_device() == "cpu":
        torch.default_generator.manual_seed(for_torch)  # 2 µs, where torch.manual_seed looks for GPUs for 250
    else:
        torch.manual_seed(for_torch)
