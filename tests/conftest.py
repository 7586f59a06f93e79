"""What all tests share: the folder of real data and reference numbers, if this machine has it."""
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import ce_mm  # noqa: F401  (before any test imports mmdet, which needs what stands in for mmcv's operators)

ROOT = Path(__file__).resolve().parents[1]

# A process whose first backward comes after a FakeTensorMode (as torch.export's), which pretends to have a GPU, has
# threads for that GPU and may not fork any more. Tests that fork must not depend on which tests came before.
torch.ones((), requires_grad=True).backward()

# The same examples every time, however long they take: neither chance nor the clock decides whether the tests pass.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


def pytest_configure(config: pytest.Config) -> None:
    """Keep what Numba compiles for tests with what pytest keeps: all workers and later runs find it."""
    if hasattr(config, "cache"):
        os.environ["NUMBA_CACHE_DIR"] = str(config.cache.mkdir("numba"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder named by CE_MM_SHARED, or ``../shared`` beside the project; skips where it is absent."""
    folder = Path(os.environ.get("CE_MM_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data or reference numbers here: {folder} is absent (CE_MM_SHARED names another place)")
    return folder
