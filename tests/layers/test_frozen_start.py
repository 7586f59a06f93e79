"""What CE says of a training in which its averages stay where they start."""
import warnings

import pytest
import torch

from ce_mm.layers import CENorm, frozen_start


@pytest.fixture(autouse=True)
def nothing_said_yet():
    """What is said once in a process may be said in every test."""
    frozen_start.warn_of_frozen_start.cache_clear()


def frozen(branches=("bd", "ir")):
    """A layer in training whose base norm is in eval mode, as ``norm_eval`` leaves it."""
    ce = CENorm(16, branches=branches)
    ce.norm.eval()
    return ce


def test_a_training_with_fresh_averages_in_eval_mode_is_told_once_what_to_do():
    with pytest.warns(UserWarning, match=r"averages are at their starting values.*load weights") as said:
        for ce in (frozen(), frozen(("bd",)), frozen(("ir",))):
            for _ in range(2):
                ce(torch.randn(2, 16, 3, 3))
    assert len(said) == 1


def test_nothing_is_said_where_there_is_nothing_to_say():
    moved = frozen()
    moved.norm.train()
    moved(torch.randn(2, 16, 3, 3))
    moved.norm.eval()
    for ce in (moved, CENorm(16), CENorm(16).eval()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ce(torch.randn(2, 16, 3, 3))


def test_the_averages_are_looked_at_once_a_layer(monkeypatch):
    ce, looks = CENorm(16), []
    monkeypatch.setattr(ce.bd, "is_at_start", lambda: looks.append(True) or True)
    ce.norm.eval()
    for _ in range(3):
        ce(torch.randn(2, 16, 3, 3))
    assert looks == [True]


def test_nothing_is_looked_at_while_a_compiler_or_a_meta_tensor_is_at_work():
    ce = CENorm(16)
    ce.norm.eval()
    torch.compile(ce, fullgraph=True, backend="eager")(torch.randn(2, 16, 3, 3))
    torch.export.export(ce, (torch.randn(2, 16, 3, 3),))
    ce.to("meta")(torch.empty(2, 16, 3, 3, device="meta"))
    assert not ce._averages_seen
