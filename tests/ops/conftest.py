"""The modules of Triton kernels as the tests run them: on a GPU where there is one, else in Triton's interpreter."""
import sys
from types import SimpleNamespace

import pytest
import torch
from triton_modules import load


@pytest.fixture(scope="session")
def loaded():
    """``kernels`` and ``coefficients``, and what of Triton's own library a CPU needs in another form."""
    triton = pytest.importorskip("triton")
    on_cpu = not torch.cuda.is_available()
    with pytest.MonkeyPatch.context() as patch:
        if on_cpu:
            patch.setenv("TRITON_INTERPRET", "1")
        patch.setitem(sys.modules, "ce_mm.ops.triton_tiles", load("triton_tiles"))
        kernels, coefficients = load("triton_kernels"), load("triton_coefficients")
        language = vars(triton.language)
        functions = {name: f for name, f in language.items() if isinstance(f, triton.runtime.JITFunction)}
        library = {name: triton.jit(f.fn) for name, f in functions.items()} if on_cpu else {}
    return SimpleNamespace(kernels=kernels, coefficients=coefficients, library=library)


@pytest.fixture
def runnable(loaded, monkeypatch):
    """``loaded``, for the time of a test."""
    tl = pytest.importorskip("triton").language
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    # The interpreter leaves parts of the language behind in its own form, which no compilation after it could use.
    language = [(part, dict(vars(part))) for part in (tl, tl.core, tl.math, tl.tensor)]
    vars(tl).update(loaded.library)
    yield loaded
    for part, members in language:
        for name, member in members.items():
            if vars(part)[name] is not member:
                setattr(part, name, member)
