"""Whether this machine can run the passes that Numba compiles, and making them ready, before anything imports Numba.

To import the backend is to compile it, or to find it compiled.
"""
import functools
import importlib
import os
import platform
import sys
import threading
from pathlib import Path

#: The full name of the backend.
PASSES = "ce_mm.ops.backends.numba_passes"
#: What the passes need of an x86-64: vectors, products added at once, and float16.
X86_64 = ("avx2", "fma", "f16c")

#: Held where a backend is chosen and perhaps compiled. No process forks meanwhile: its child would wait for ever for
#: the locks of a thread that it does not have.
first_use = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=first_use.acquire, after_in_parent=first_use.release, after_in_child=first_use.release
    )


def is_known_machine() -> bool:
    """Whether there may be such passes on machines of this kind."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")


@functools.cache
def trouble() -> str:
    """Why there are no such passes, in a line without its full stop; empty where they are ready."""
    if not is_known_machine():
        return f"there are none for {platform.machine()} on {sys.platform}"
    try:
        import llvmlite.binding

        importlib.import_module("ce_mm.ops.backends.numba_cache")  # which knows what Numba it needs
    except Exception as error:  # an ImportError, also of a NumPy that does not fit; or that of a damaged installation
        return f'{_line(error)}; to have them, install Numba (pip install "numba>=0.62") and start again'
    features = llvmlite.binding.get_host_cpu_features()
    missing = [name for name in X86_64 if platform.machine() == "x86_64" and not features.get(name)]
    if missing:
        return f"this CPU has no {', '.join(missing)}"
    try:
        importlib.import_module(PASSES)
    except Exception as error:  # of Numba's, LLVM's, or an operating system's that allows no new code
        return f"they could not be compiled: {type(error).__name__}: {_line(error)}"
    return ""


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "").rstrip(".")


def warm_up() -> Path:
    """Have the passes compiled, or find them compiled, so that no process has to wait for that later.

    Returns:
        The folder where they are kept.

    Raises:
        RuntimeError: there are none on this machine, or they could not be kept; a line says why.
    """
    with first_use:
        try:
            from ce_mm.ops.backends import numba_cache

            place = numba_cache.folder()
        except ImportError:
            raise RuntimeError(f"there are no compiled passes for this CPU: {trouble()}") from None
        except OSError as error:
            raise RuntimeError(f"compiled passes cannot be kept: {error}") from None
        if trouble():
            raise RuntimeError(f"there are no compiled passes for this CPU: {trouble()}")
        if numba_cache.failures:
            raise RuntimeError(f"compiled passes cannot be kept: {numba_cache.failures[0]}")
    return place
