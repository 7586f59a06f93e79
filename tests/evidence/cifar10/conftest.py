import json

import pytest
import torch

from tools.evidence.cifar10.measuring import measure
from tools.evidence.cifar10.pictures import Cifar10, Pictures
from tools.evidence.cifar10.training import Recipe, train


@pytest.fixture
def data():
    """Sixty-four pictures to train on, in which a class is a brightness, and twenty to test."""
    random = torch.Generator().manual_seed(0)

    def part(count: int) -> Pictures:
        labels = torch.arange(count) % 10
        noise = torch.randint(0, 20, (count, 3, 32, 32), generator=random)
        return Pictures((noise + 22 * labels[:, None, None, None]).to(torch.uint8), labels)

    return Cifar10(part(64), part(20))


@pytest.fixture
def recipe():
    return Recipe((8, "M", 16, "M", 16, 16), epochs=3, batch=16, rate=lambda epoch: 0.05, weight_decay=5e-4)


@pytest.fixture
def measured(tmp_path, data, recipe):
    folder = tmp_path / "bn+relu-seed0"
    train("BN+ReLU", 0, recipe, data, folder, 0.01)
    curve = json.loads((folder / "curve.json").read_text())
    return measure("BN+ReLU", 0, recipe, data, folder, 0.01) | dict(seed=0, curve=curve)
