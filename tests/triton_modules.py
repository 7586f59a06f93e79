"""Modules of Triton kernels in copies of their own: as a process's environment is when they load, they stay."""
import importlib.util
from types import ModuleType


def load(name: str) -> ModuleType:
    """A fresh copy of a module of ce_mm.ops.backends that no other test sees."""
    spec = importlib.util.find_spec(f"ce_mm.ops.backends.{name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
