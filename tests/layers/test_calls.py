"""One forward of CENorm is a short road: few calls, through few files, not deep."""
import pytest
import torch
from calls import Calls

from ce_mm.layers import CENorm
from ce_mm.ops.backends import choose

#: By backend: the most calls, files and calls inside of each other.
BOUNDS = dict(plain=(82, 10, 7), numba=(88, 13, 8))


@pytest.fixture(params=BOUNDS)
def bounds(request, monkeypatch):
    pytest.importorskip("numba" if request.param == "numba" else "torch")
    monkeypatch.setenv("CE_MM_BACKEND", request.param)
    choose.cache_clear()
    yield BOUNDS[request.param]
    choose.cache_clear()


@pytest.mark.parametrize("training", [True, False])
def test_one_forward_is_a_short_road(bounds, training):
    ce, x = CENorm(32).train(training), torch.randn(4, 32, 8, 8)
    ce(x)  # what only a first call does
    calls = Calls(ce, x)
    assert ("layers/ce_norm.py", "CENorm.forward") in calls.functions
    most, files, depth = bounds
    assert calls.number <= most, str(calls)
    assert len(calls.files) <= files, str(calls)
    assert calls.depth <= depth, str(calls)
