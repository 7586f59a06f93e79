"""CE plain and CE compiled are one layer on two backends, which take turns in one process."""
import os

import pytest
import torch

from ce_mm import ops
from ce_mm.ops import backends as all_backends
from ce_mm.ops.backends import plain
from tools.evidence.benchmark import backends
from tools.evidence.benchmark.cases import layer_case
from tools.evidence.benchmark.layers import FusedCE
from tools.evidence.benchmark.measure import Clock, measure_cases
from tools.evidence.benchmark.settings import Settings

SETTINGS = Settings("cpu", batch=2, dtype="float32", layout="contiguous", warmup=0, rounds=2, quick=True)
KIND = torch.device("cpu"), torch.float32, 16


@pytest.fixture
def leave_out(monkeypatch):
    """Leaves no backend beside plain."""
    monkeypatch.setattr(all_backends, "BACKENDS", dict(plain=all_backends.BACKENDS["plain"]))
    ops.choose.cache_clear()
    yield
    monkeypatch.undo()
    ops.choose.cache_clear()


def test_ce_stands_under_the_name_of_each_backend_where_it_stood():
    found = backends.on_each({"BN": 1, "CE": 2, "SE": 3}, SETTINGS)
    assert list(found.items()) == [("BN", 1), ("CE plain", 2), ("CE compiled", 2), ("SE", 3)]
    assert backends.notes(SETTINGS) == ["CE compiled: numba_passes, for float32 on cpu"]


def test_what_is_not_there_is_left_out_and_said(leave_out):
    assert backends.on_each({"BN": 1, "CE": 2}, SETTINGS) == {"BN": 1, "CE plain": 2}
    assert backends.notes(SETTINGS) == ["CE compiled is left out: no compiled backend reaches float32 on cpu here"]


@pytest.mark.parametrize("asked", [None, "", "numba"])
def test_the_backend_of_a_turn_is_that_of_its_name_and_leaves_no_trace(asked, monkeypatch):
    if asked is None:
        monkeypatch.delenv("CE_MM_BACKEND", raising=False)
    else:
        monkeypatch.setenv("CE_MM_BACKEND", asked)
    ops.choose.cache_clear()
    compiled = ops.choose(*KIND)
    assert compiled is not plain
    for name, backend in {"CE plain": plain, "CE compiled": compiled, "BN": compiled}.items():
        for key in (name, (name, 16)):
            with backends.turn(key):
                assert ops.choose(*KIND) is backend
    assert ops.choose(*KIND) is compiled
    assert os.environ.get("CE_MM_BACKEND") == asked


def test_every_pass_of_a_turn_runs_on_its_backend(monkeypatch):
    passes = ["moments", "group_affine", "output_sums", "input_gradient"]
    now, seen = [], {name: {"CE plain": 0, "CE compiled": 0} for name in passes}
    turn = backends.turn

    def noting(name):
        now[:] = [name]
        return turn(name)

    monkeypatch.setattr(backends, "turn", noting)
    for name in passes:
        theirs = getattr(plain, name)

        def counted(*arguments, name=name, theirs=theirs):
            if now:  # before the first turn statistics settle
                seen[name][now[0]] += 1
            return theirs(*arguments)

        monkeypatch.setattr(plain, name, counted)
    cases = backends.on_each({"CE": layer_case(FusedCE(32), SETTINGS, (2, 32, 8, 8))}, SETTINGS)
    measure_cases(cases, Clock(torch.device("cpu")), warmup=0, rounds=2)
    steps, counts = 2 * 2, 2  # each round twice; and once for the memory kept, and once for the peak
    for name in ("output_sums", "input_gradient"):
        assert seen[name] == {"CE plain": steps + 1, "CE compiled": 0}
    for name in ("moments", "group_affine"):
        assert seen[name] == {"CE plain": 2 * steps + counts, "CE compiled": 0}
