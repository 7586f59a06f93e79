"""CE in a PyTorch model that is there already: in the place of its batch norms, with their weights and buffers."""
import fnmatch
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ce_mm.layers.ce_norm import CENorm
from ce_mm.layers.norms import kind_of

#: Which norms: a pattern of their names, a class of them, or a function of a name and a norm.
Where = str | type[nn.Module] | Callable[[str, nn.Module], bool]


def equalize(model: nn.Module, where: Where = "*", **ce_arguments: Any) -> dict[str, CENorm]:
    """Put a CENorm around batch norms of a model, each of which becomes the base norm, itself, in its own place.

    The model computes what it did until CE is trained only in this: CE starts as an even mix of both branches, so train
    on. A state dict of the plain model still loads: ``bn1.weight`` becomes ``bn1.norm.weight``.

    Args:
        model: changed in place.
        where: a pattern of names as those of a shell (``"layer[123].*.bn3"``), a class, or a function of the name and
            the norm; of all batch norms and synchronised ones with running statistics, the default. The paper puts CE
            after the last norm of each block that a ReLU follows, and none into the last stage.
        ce_arguments: CENorm's, without ``norm``.

    Returns:
        What was put in, by the names of the norms, in the order of the model.

    Raises:
        ValueError: there is no such norm in the model, or an argument is out of range; the model is as it was.
        TypeError: ``norm`` is given, which the model decides, or ``where`` is something else.
    """
    if "norm" in ce_arguments:
        raise TypeError("equalize takes the base norms from the model: leave norm out")
    chosen = {name: norm for name, norm in _batch_norms(model).items() if _is_meant(where, name, norm)}
    if not chosen:
        found = ", ".join(_batch_norms(model)) or "none outside of a CENorm"
        raise ValueError(f"where must choose batch norms of the model, which are {found}; {where!r} chooses none")
    made = {id(norm): _around(norm, ce_arguments) for norm in chosen.values()}  # one in several places stays one
    for name, norm in chosen.items():
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent).add_module(child, made[id(norm)])
    return {name: made[id(norm)] for name, norm in chosen.items()}


def _batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Those that are not inside of a CENorm, by name."""
    inside = {id(part) for ce in model.modules() if isinstance(ce, CENorm) for part in ce.modules()}
    named = model.named_modules(remove_duplicate=False)
    return {name: norm for name, norm in named if name and isinstance(norm, _BatchNorm) and id(norm) not in inside}


def _is_meant(where: Where, name: str, norm: nn.Module) -> bool:
    if isinstance(where, str):
        return fnmatch.fnmatchcase(name, where)
    if isinstance(where, type):
        return isinstance(norm, where)
    if callable(where):
        return bool(where(name, norm))
    raise TypeError(f"where must be a pattern of names, a class or a function of a name and a norm, got {where!r}")


def _around(norm: nn.Module, ce_arguments: dict[str, Any]) -> CENorm:
    kind_of(norm)
    ce = CENorm(norm.num_features, **ce_arguments)
    ce.norm = norm
    ce.to(device=norm.running_mean.device, dtype=norm.running_mean.dtype)
    return ce.train(norm.training)
