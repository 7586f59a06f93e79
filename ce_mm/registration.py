"""What ``import ce_mm`` does: make OpenMMLab work here, and put CE into its registry as far as it is installed."""
import importlib
from collections.abc import Callable
from typing import NoReturn

from ce_mm import compat
from ce_mm.compat.requirements import MissingRequirementError, require

# Modules that register something, in which registry of mmengine's, and the names by which configs reach for it.
PIECES = {
    "ce_mm.layers": ("MODELS", ("CE", "SN")),
    "ce_mm.backbones": ("MODELS", ("CEResNet", "CEMobileNetV2", "CEShuffleNetV2", "CEVGG")),
    "ce_mm.hooks": ("HOOKS", ("ChannelInhibitionHook", "NonFiniteHook", "SafeCheckpointHook", "StepSeedsHook")),
    "ce_mm.transforms": ("TRANSFORMS", ("LoadImage",)),
}


def register() -> None:
    """Register all that this installation can use; where a library lacks, its names raise the error when built."""
    try:
        require("mmengine", "mmcv")
    except MissingRequirementError:
        pass  # said below by whatever is reached for
    else:
        compat.apply()
    for module, (registry, names) in PIECES.items():
        try:
            importlib.import_module(module)
        except MissingRequirementError as error:
            _register_unavailable(registry, names, error)


def _register_unavailable(registry: str, names: tuple[str, ...], error: ImportError) -> None:
    try:
        require("mmengine")
    except MissingRequirementError:
        return  # without mmengine there is no registry that anyone could ask
    from mmengine import registry as registries

    for name in names:
        getattr(registries, registry).register_module(name, module=_raiser(error))


def _raiser(error: ImportError) -> Callable[..., NoReturn]:
    def unavailable(*args: object, **kwargs: object) -> NoReturn:
        raise error

    return unavailable
