"""One forward of CENorm is a short road: few calls, through few files, not deep."""
import pytest
import torch
from calls import Calls

from ce_mm.layers import CENorm

MOST_CALLS, MOST_FILES, DEEPEST = 80, 9, 7


@pytest.mark.parametrize("training", [True, False])
def test_one_forward_is_a_short_road(training):
    ce, x = CENorm(32).train(training), torch.randn(4, 32, 8, 8)
    ce(x)  # what only a first call does
    calls = Calls(ce, x)
    assert ("layers/ce_norm.py", "CENorm.forward") in calls.functions
    assert calls.number <= MOST_CALLS, str(calls)
    assert len(calls.files) <= MOST_FILES, str(calls)
    assert calls.depth <= DEEPEST, str(calls)
