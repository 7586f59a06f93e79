"""The backends as the tests run them: Triton's on a GPU where there is one, else in Triton's interpreter."""
import sys
from types import SimpleNamespace

import pytest
import torch
from triton_modules import load

from ce_mm.ops.backends import BACKENDS, choose

TUNED = ["_sums_kernel", "_affine_kernel", "_input_gradient_kernel"]


@pytest.fixture(scope="session")
def loaded():
    """``passes``, ``coefficients``, what of Triton's own library a CPU needs in another form, and ``configurations``:
    of every tuner all that it may choose among."""
    triton = pytest.importorskip("triton")
    on_cpu = not torch.cuda.is_available()
    with pytest.MonkeyPatch.context() as patch:
        if on_cpu:
            patch.setenv("TRITON_INTERPRET", "1")
        modules = {}
        for name in ("triton_tiles", "triton_coefficients", "triton_passes"):
            modules[name] = load(name)
            patch.setitem(sys.modules, f"ce_mm.ops.backends.{name}", modules[name])
        language = vars(triton.language)
        functions = {name: f for name, f in language.items() if isinstance(f, triton.runtime.JITFunction)}
        library = {name: triton.jit(f.fn) for name, f in functions.items()} if on_cpu else {}
    passes = modules["triton_passes"]
    return SimpleNamespace(
        passes=passes,
        coefficients=modules["triton_coefficients"],
        library=library,
        configurations={tuner: tuner.configs for name in TUNED for tuner in getattr(passes, name).tuners.values()},
    )


@pytest.fixture
def runnable(loaded, monkeypatch):
    """``loaded``, for the time of a test, with the first configuration of every kernel in place of a trial of all."""
    tl = pytest.importorskip("triton").language
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "ce_mm.ops.backends.triton_passes", loaded.passes)
    for tuner, possible in loaded.configurations.items():
        monkeypatch.setattr(tuner, "configs", possible[:1])
    # The interpreter leaves parts of the language behind in its own form, which no compilation after it could use.
    language = [(part, dict(vars(part))) for part in (tl, tl.core, tl.math, tl.tensor)]
    vars(tl).update(loaded.library)
    yield loaded
    for part, members in language:
        for name, member in members.items():
            if vars(part)[name] is not member:
                setattr(part, name, member)


@pytest.fixture
def use(request, monkeypatch):
    """A function that has everything from now on computed by the backend of this name, where it reaches."""

    def by(name):
        assert name in BACKENDS
        if name == "triton":
            request.getfixturevalue("runnable")
        if name == "numba":
            pytest.importorskip("numba")
        monkeypatch.setenv("CE_MM_BACKEND", name)
        choose.cache_clear()

    yield by
    choose.cache_clear()
