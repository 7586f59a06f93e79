"""Watching what a network's rectifiers let through, wherever they stand: a module of their own, or folded into CE.

A *place* is one call of one rectifier in a forward pass, in the order of the calls. A module that is called several
times (mmpretrain's ResNet has one ReLU for all norms of a block) gives several places: ``layer1.0.relu``,
``layer1.0.relu#2``, ... A CENorm that rectifies in its own last pass is a place under its own name. So a network has as
many places, in the same order, with CE and without: in a ResNet the stem first, then for each block one behind each of
its norms, the last of them behind the residual add.

No places: rectifiers that are plain function calls in a forward (``F.relu``), those between linear layers, and the one
inside squeeze and excitation, which sees no map but a gate's few numbers.
"""
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ce_mm.layers import CENorm

#: The modules taken for rectifiers: what the paper compares, and MobileNetV2's.
RECTIFIERS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.ReLU6)
#: Classes, of mmpretrain and mmdet, that compute a gate and not a map.
GATES = ("SELayer",)


@contextmanager
def watching(model: nn.Module, see: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """While it lasts, every forward pass of ``model`` shows its rectified maps.

    Args:
        model: any network. A pass begins and ends with a call of ``model`` itself, by which calls are counted; what its
            parts do outside of one (a block that is computed again in the backward pass) is not shown.
        see: called with a place and its map (N, C, H, W); what it returns, if not None, takes the map's place.
    """
    calls: Counter[str] = Counter()
    passing = False

    def begin(*_: object) -> None:
        nonlocal passing
        calls.clear()
        passing = True

    def end(*_: object) -> None:
        nonlocal passing
        passing = False

    def of_rectifier(name: str, module: nn.Module, args: tuple, output: object) -> Tensor | None:
        if not passing or not isinstance(output, Tensor) or output.dim() != 4:
            return None
        calls[name] += 1
        return see(name if calls[name] == 1 else f"{name}#{calls[name]}", output)

    def of_ce(name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: object) -> Tensor | None:
        rectifier = kwargs.get("rectifier", args[2] if len(args) > 2 else None)
        return None if rectifier is None else of_rectifier(name, module, args, output)

    handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end, always_call=True)]
    gates = tuple(f"{name}." for name, module in model.named_modules() if type(module).__name__ in GATES)
    for name, module in model.named_modules():
        if isinstance(module, RECTIFIERS) and not name.startswith(gates):
            handles.append(module.register_forward_hook(partial(of_rectifier, name)))
        elif isinstance(module, CENorm):
            handles.append(module.register_forward_hook(partial(of_ce, name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
