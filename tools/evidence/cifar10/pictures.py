"""CIFAR-10 as tensors: read from its usual archive or from a file of JPEG pictures, and augmented a batch at a time."""
import io
import tarfile
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 32
#: Pixels of black around a picture before a random crop, as is usual on CIFAR-10.
PADDING = 4


class Pictures(NamedTuple):
    """One part of the data set."""

    values: Tensor  #: (N, 3, 32, 32) uint8, RGB
    labels: Tensor  #: (N,) int64, 0 to 9


class Colours(NamedTuple):
    """What pictures are normalised by, for each colour."""

    mean: Tensor  #: (3, 1, 1) float32
    spread: Tensor  #: (3, 1, 1) float32


class Cifar10(NamedTuple):
    """The data set."""

    train: Pictures
    test: Pictures


def read_cifar10(path: Path) -> Cifar10:
    """Read the data set.

    Args:
        path: ``cifar-10-python.tar.gz``, as its authors give it away, or an ``.npz`` with the arrays jpeg (uint8, all
            files one after the other), offsets (N+1), labels (N) and split (N; 0 train, 1 test).

    Raises:
        ValueError: the file is missing or is neither; the text names it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give cifar-10-python.tar.gz, or an .npz of JPEG pictures")
    try:
        if path.suffix == ".npz" and zipfile.is_zipfile(path):
            return _from_jpeg(path)
        if tarfile.is_tarfile(path):
            return _from_archive(path)
    except (zipfile.BadZipFile, zlib.error, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: the file is damaged ({error}); copy or download it again") from error
    raise ValueError(f"{path}: expected cifar-10-python.tar.gz, or an .npz of JPEG pictures")


def _from_jpeg(path: Path) -> Cifar10:
    with np.load(path) as file:  # allow_pickle is False: arrays of numbers only
        missing = {"jpeg", "offsets", "labels", "split"} - set(file.files)
        if missing:
            raise ValueError(f"{path}: it has no {', '.join(sorted(missing))}; expected jpeg, offsets, labels, split")
        jpeg, offsets, labels, split = (file[name] for name in ("jpeg", "offsets", "labels", "split"))
    values = np.empty((len(labels), SIDE, SIDE, 3), np.uint8)
    for index, (start, stop) in enumerate(pairwise(offsets)):
        values[index] = Image.open(io.BytesIO(jpeg[start:stop].tobytes())).convert("RGB")
    return Cifar10(*(_pictures(values[split == part], labels[split == part]) for part in (0, 1)))


def _from_archive(path: Path) -> Cifar10:
    from torchvision.datasets import CIFAR10  # not everywhere where the .npz is enough

    with TemporaryDirectory() as folder:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        try:
            # The archive's files are pickles. torchvision reads them only if they are the authors', by their checksums.
            parts = [CIFAR10(folder, train=train) for train in (True, False)]
        except RuntimeError:
            raise ValueError(
                f"{path}: its files are not those of CIFAR-10's Python version, by their checksums; download it again"
            ) from None
    return Cifar10(*(_pictures(part.data, np.asarray(part.targets)) for part in parts))


def _pictures(values: np.ndarray, labels: np.ndarray) -> Pictures:
    """From (N, 32, 32, 3) uint8 and (N,)."""
    return Pictures(torch.from_numpy(values).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long())


def colour_statistics(values: Tensor) -> Colours:
    """Mean and spread of each colour of pictures (N, 3, H, W) uint8."""
    parts = values.transpose(0, 1).flatten(1).double()
    return Colours(parts.mean(1).float()[:, None, None], parts.std(1).float()[:, None, None])


def normalised(values: Tensor, colours: Colours) -> Tensor:
    """Pictures (n, 3, H, W) uint8 as float32 with the mean and spread of ``colours`` taken out."""
    mean, spread = colours
    return (values.float() - mean) / spread


def augmented(values: Tensor, random: torch.Generator) -> Tensor:
    """Every picture shifted by up to PADDING pixels each way, and mirrored with probability one half.

    Args:
        values: (n, 3, 32, 32) uint8.
        random: on the CPU, so that all devices draw alike.
    """
    n, _, side, _ = values.shape
    top, left = torch.randint(0, 2 * PADDING + 1, (2, n, 1), generator=random)
    mirrored = torch.rand((n, 1), generator=random) < 0.5
    straight = torch.arange(side)
    rows = (top + straight).to(values.device)
    columns = (left + torch.where(mirrored, straight.flip(0), straight)).to(values.device)
    padded = torch.nn.functional.pad(values, (PADDING,) * 4)
    picture = torch.arange(n, device=values.device)[:, None, None]
    return padded[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
