"""What a backend is, the table of them, and how one is chosen.

A backend is a module with the four passes over a map and what moves the averages: the functions of
:mod:`ce_mm.ops.backends.plain`, with the same arguments and results. What else it may say of itself:

* ``coefficients``, ``coefficients_backward`` and ``COEFFICIENTS_GROUP``: the whole chain of a batch norm with both
  branches, and the widest group it takes. Without, the chain runs in PyTorch calls.

  ``coefficients(instance, second, shift, parameters, averages, chain, checks)`` goes from the moments, about a shift
  (C,), to the coefficients of the group affine, and moves the averages by the statistics of the batch, all, or none if
  a value is not finite; where ``second`` is None it takes the averages for the statistics, and moves nothing. Returns
  the coefficients, whether all was finite, a bool () (None of averages), and a tuple of what backward needs. Or None:
  with ``checks`` where a mean over the batch lies far from the shift (:func:`ce_mm.ops.needed_shift`), before any
  average has moved. ``coefficients_backward(kept, parameters, chain, dweight, ddiagonal, dbias)`` returns S (None of
  averages), s_n and o_n of :mod:`ce_mm.ops.joint`, and the gradients of the parameters. Tensors but the last three are
  dense and of the work type; autograd sees neither function.
* ``needed_shift``: its own version of :func:`ce_mm.ops.needed_shift`, of dense vectors.
* ``ASKS``: the types of device on which to ask for a value, and wait for it, costs less than a pass (``"cpu"``). There
  nothing is subtracted from x unless the moments show that its channels lie far from 0; elsewhere the shift is always
  taken from the data.
* ``PRECISE``: whether the variance inside a sample loses nothing where that lies far from the shift; else samples that
  do are taken again on devices that are asked.
* ``OVERWRITES``: the types of device on which ``group_affine`` has a further argument, whether to write over x.

:data:`BACKENDS` says which tensors each reaches. The last entry that reaches one runs it, and what none reaches goes
to plain, which reaches all. :func:`add_backend` adds one.

The environment variable ``CE_MM_BACKEND``, read when a kind of tensor is first met, names the only one to be used
beside plain (``triton``), or with a minus the one not to be used (``-triton``).
"""
import functools
import importlib
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch

from ce_mm.ops.backends import numba_ready


class Backend(NamedTuple):
    """An entry of the table."""

    module: str  #: its full name; it is imported when the first tensor within reach comes
    reaches: Callable[[torch.device, torch.dtype, int], bool]  #: of a map its device, its type and g


def _numba_reaches(device: torch.device, dtype: torch.dtype, group_size: int) -> bool:
    """CPUs with vectors, where Numba is."""
    half_or_single = dtype in (torch.float32, torch.float16, torch.bfloat16)
    return device.type == "cpu" and half_or_single and group_size <= 64 and _has_numba()


@functools.cache
def _has_numba() -> bool:
    trouble = numba_ready.trouble()
    if trouble and numba_ready.is_known_machine():
        logging.getLogger(__name__).warning(
            "Channel Equilibrium runs on the CPU in plain PyTorch calls, which are slower than compiled passes: %s.",
            trouble,
        )
    return not trouble


def _triton_reaches(device: torch.device, dtype: torch.dtype, group_size: int) -> bool:
    """NVIDIA's GPUs with tf32; a CPU only by the interpreter, where both Triton and we are told to use it."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("CE_MM_BACKEND") == "triton"
    device_fits = _has_tf32(device) if device.type == "cuda" else device.type == "cpu" and interpreted
    half_or_single = dtype in (torch.float32, torch.float16, torch.bfloat16)
    # Matrices of wider groups do not fit into the registers of a program.
    return half_or_single and group_size <= 64 and device_fits and _has_triton()


def _has_tf32(device: torch.device) -> bool:
    """Whether Triton and its tf32 products support the GPU: NVIDIA's from compute capability 8.0 (Ampere) on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "Channel Equilibrium runs on the GPU in plain PyTorch calls, which are slower than its Triton kernels: "
            "%s. To have the kernels, install Triton (pip install triton) and start again.",
            error,
        )
        return False
    return True


#: By name; the last that reaches a tensor runs it.
BACKENDS = {
    "plain": Backend("ce_mm.ops.backends.plain", lambda device, dtype, group_size: True),
    "numba": Backend(numba_ready.PASSES, _numba_reaches),
    "triton": Backend("ce_mm.ops.backends.triton_passes", _triton_reaches),
}


def add_backend(name: str, backend: Backend) -> None:
    """Put a further backend into the table, or in the place of one of its name; it goes before those that were there.

    Raises:
        ValueError: plain stays as it is, or the name begins with the minus that leaves one out.
    """
    if name in ("", "plain") or name.startswith("-"):
        raise ValueError(f"a backend's name must be one of its own, without a minus, got {name!r}")
    BACKENDS.pop(name, None)
    BACKENDS[name] = Backend(*backend)
    choose.cache_clear()


@functools.cache
def choose(device: torch.device, dtype: torch.dtype, group_size: int, empty: bool = False) -> ModuleType:
    """The backend for a map of this device, type and g; plain for one without elements, where there is nothing to run.

    Raises:
        ValueError: ``CE_MM_BACKEND`` names none.
    """
    with numba_ready.first_use:
        for name in reversed(_allowed()):
            if name == "plain" or (not empty and BACKENDS[name].reaches(device, dtype, group_size)):
                return importlib.import_module(BACKENDS[name].module)
    raise AssertionError("plain is always allowed")


def _allowed() -> list[str]:
    asked = os.environ.get("CE_MM_BACKEND", "")
    if asked.removeprefix("-") not in (*BACKENDS, "") or asked in ("-", "-plain"):
        others = ", ".join(name for name in BACKENDS if name != "plain")
        raise ValueError(
            f"CE_MM_BACKEND must name a backend ({', '.join(BACKENDS)}), or with a minus one to leave out ({others}), "
            f"got {asked!r}; import what adds another one first, or unset it to have the fastest of all"
        )
    if asked.startswith("-"):
        return [name for name in BACKENDS if "-" + name != asked]
    return [name for name in BACKENDS if name in ("plain", asked or name)]
