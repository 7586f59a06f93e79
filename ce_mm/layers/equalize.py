"""CE in a PyTorch model that is there already: around batch norms of it, which keep their weights and buffers."""
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ce_mm.layers.ce_norm import CENorm
from ce_mm.layers.norms import kind_of
from ce_mm.ops.types import NormModule

#: Which norms: a pattern of their names, a class of them, or a function of a name and a norm.
Where = str | type[nn.Module] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True, repr=False)
class Equalized:
    """What :func:`equalize` has done to a model; printed, it is a line for each norm.

    Attributes:
        layers: the new ones, by the names of their places, in the order of the model.
        skipped: the norms that ``"*"`` has left as they were, by name, with the reason.
    """

    layers: dict[str, CENorm]
    skipped: dict[str, str]

    def __repr__(self) -> str:
        said = {name: _size(ce) for name, ce in self.layers.items()}
        said |= {name: f"left as it was: {reason}" for name, reason in self.skipped.items()}
        width = max(map(len, said))
        return "\n".join(f"{name:{width}}  {what}" for name, what in said.items())


def equalize(model: nn.Module, where: Where | list[Where], **ce_arguments: Any) -> Equalized:
    """Put a CENorm in the place of batch norms of a model. The norm itself becomes the base norm inside.

    Its weights, buffers, mode, type and device stay, and what rectifies its result still does; hooks on it are not
    called any more. CE's own parameters are new, and start as an even mix of both branches: the outputs change at once,
    so train on. Equalize before anything takes a list of the parameters: an optimizer, DistributedDataParallel.

    A state dict of the plain model goes into the model before this as ever, and after it with ``strict=False``, since
    it lacks what is CE's own.

    Args:
        model: changed in place.
        where: a pattern of the norms' names as those of a shell, ``"layer[123].*.bn3"``, in which ``*`` stands for dots
            too; a class; a function that is called with each name and norm; or a list of these. ``"*"`` means all batch
            norms that CE can stand on. Those in a CENorm are never meant.
        ce_arguments: CENorm's, without ``norm``.

    Returns:
        What was put where, to be printed.

    Raises:
        ValueError: ``where``, or a part of the list, chooses no norm, or one that CE cannot stand on (BatchNorm1d and
            3d, one without running statistics, a class that computes something else); an argument is out of range.
        TypeError: ``where`` is something else, or an argument is ``norm`` or none of CENorm's.

        The model is then as it was.
    """
    if "norm" in ce_arguments:
        raise TypeError("equalize takes the base norms from the model: leave norm out")
    chosen = _chosen(_norms(model), where)
    refused = {name: reason for name, norm in chosen.items() if (reason := _obstacle(norm))}
    suited = {name: norm for name, norm in chosen.items() if name not in refused}
    if refused and not (where == "*" and suited):
        raise ValueError(f"CE cannot stand on all norms that where={where!r} chooses: {_by_reason(refused)}")
    around = {norm: _around(norm, ce_arguments) for norm in suited.values()}  # one in several places stays one
    layers = {name: around[norm] for name, norm in suited.items()}
    for name, ce in layers.items():
        model.set_submodule(name, ce)
    return Equalized(layers, refused)


def _norms(model: nn.Module) -> dict[str, nn.Module]:
    """All with statistics of batches, by all their names, without those in a CENorm."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        name: module
        for name, module in modules.items()
        if name
        and (isinstance(module, _BatchNorm) or getattr(module, "running_mean", None) is not None)
        and not isinstance(modules[name.rpartition(".")[0]], CENorm)
    }


def _chosen(norms: dict[str, nn.Module], where: Where | list[Where]) -> dict[str, nn.Module]:
    chosen = set()
    wanted: list[Any] = where if isinstance(where, list) and where else [where]
    for each in wanted:
        found = [name for name, norm in norms.items() if _is_meant(each, name, norm)]
        if not found:
            there = f"its batch norms are {_listed(list(norms))}" if norms else "it has none outside of a CENorm"
            raise ValueError(f"where must choose batch norms of the model, got {each!r}, which chooses none: {there}")
        chosen.update(found)
    return {name: norm for name, norm in norms.items() if name in chosen}


def _is_meant(where: Where, name: str, norm: nn.Module) -> bool:
    if isinstance(where, str):
        return fnmatchcase(name, where)
    if isinstance(where, type):
        return isinstance(norm, where)
    if callable(where):
        return where(name, norm)
    raise TypeError(
        f"where must be a pattern of names, a class, a function of a name and a norm, or a list of these, got {where!r}"
    )


def _obstacle(norm: nn.Module) -> str | None:
    """Why CE cannot stand on a norm."""
    try:
        kind_of(norm)
    except TypeError:
        if getattr(norm, "running_mean", None) is None:
            return f"{type(norm).__name__} has no running statistics"
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm3d)):
            return f"{type(norm).__name__} does not take maps (N, C, H, W)"
        return f"{type(norm).__name__} computes something else than BatchNorm2d"
    return None if norm.num_features else f"{type(norm).__name__} has not seen a map yet"


def _around(norm: NormModule, ce_arguments: dict[str, Any]) -> CENorm:
    ce = CENorm(norm.num_features, **ce_arguments).to(norm.running_mean.device, norm.running_mean.dtype)
    ce.norm = norm
    return ce.train(norm.training)


def _size(ce: CENorm) -> str:
    return f"{ce.num_features} channels" + ("" if ce.bd is None else f" in groups of {ce.bd.group_size}")


def _by_reason(refused: dict[str, str]) -> str:
    names = {reason: [name for name in refused if refused[name] == reason] for reason in refused.values()}
    return "; ".join(f"{reason} (at {_listed(of_it)})" for reason, of_it in names.items())


def _listed(names: list[str]) -> str:
    """The first eight, which show how the others are called."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
