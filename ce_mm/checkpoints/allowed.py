"""What a config recorded in a checkpoint may say of a backbone: known arguments, plain values, and a few layers.

mmengine's registry imports whatever a ``type`` with a dot in it names, and ``build`` calls that. So all of a recorded
config is looked at here before anything is built by it, or written for others to build by.
"""
import inspect
import math

from mmpretrain.models import backbones

from ce_mm.backbones import CEVGG, CEMobileNetV2, CEResNet, CEShuffleNetV2
from ce_mm.checkpoints.reading import CheckpointError
from ce_mm.layers import CENorm

CLASSES = {kind.__name__: kind for kind in (CEVGG, CEMobileNetV2, CEResNet, CEShuffleNetV2)}
_NORMS = ("BN", "BN2d", "SyncBN", "GN", "LN", "IN", "IN2d", "SN")
_RECTIFIERS = ("ReLU", "LeakyReLU", "PReLU", "RReLU", "ReLU6", "ELU", "SiLU", "GELU", "HSwish", "Sigmoid", "Tanh")
#: Argument that is the config of a layer -> types that it may have.
_LAYERS = {"norm_cfg": _NORMS, "norm": _NORMS, "act_cfg": _RECTIFIERS, "conv_cfg": ("Conv", "Conv2d")}
_SETTINGS = ("ce_cfg", "ce_stem_cfg")
#: Numbers by which a network of any weights can be made to need any room or time -> the most that they may be.
_COUNTS = {"strides": 32, "dilations": 32, "iterations": 1000}


def check_config(config: dict) -> None:
    """Look through a recorded config.

    Args:
        config: of a backbone; ``type`` is a key of ``CLASSES``.

    Raises:
        CheckpointError: there is more in it than arguments of that backbone with plain values.
    """
    for name, value in config.items():
        if name == "type":
            continue
        if name not in parameters(config["type"]):
            _refuse(name, value, f"an argument of {config['type']}")
        elif name in _SETTINGS and value is not None:
            _check_settings(name, value)
        else:
            _check_argument(name, value)


def parameters(kind: str) -> dict[str, object]:
    """The arguments of a backbone here, by its name in ``CLASSES``, with their defaults."""
    own, base = CLASSES[kind], getattr(backbones, kind.removeprefix("CE"))
    defaults = {}
    for each in (base, own):  # where the own default is None, it stands for the base's
        found = [p for p in inspect.signature(each).parameters.values() if p.kind is not p.VAR_KEYWORD]
        defaults |= {p.name: p.default for p in found if p.default is not None or p.name not in defaults}
    return defaults


def _check_settings(name: str, settings: object) -> None:
    if not isinstance(settings, dict):
        _refuse(name, settings, "a dict")
    known = set(inspect.signature(CENorm).parameters) - {"num_features"}
    for key, value in settings.items():
        if key not in known:
            _refuse(f"{name}.{key}", value, "an argument of CENorm")
        _check_argument(key, value, f"{name}.")


def _check_argument(name: str, value: object, prefix: str = "") -> None:
    if name in _LAYERS and value is not None:
        if not isinstance(value, dict) or value.get("type") not in _LAYERS[name]:
            _refuse(prefix + name, value, f"a dict with one of the types {', '.join(_LAYERS[name])}")
        for key, inner in value.items():
            if not isinstance(key, str) or not key.isidentifier() or key.startswith("_") or not _is_plain(inner):
                _refuse(f"{prefix}{name}.{key}", inner, "an argument with a plain value")
            if name == "conv_cfg" and type(inner) in (int, float):
                _refuse(f"{prefix}{name}.{key}", inner, "no number, as the network itself says all sizes of its layers")
        return
    values = value if isinstance(value, list | tuple) else [value]
    if not all(map(_is_plain, values)):
        _refuse(prefix + name, value, "a number or text, or several in a list")
    if name in _COUNTS and not all(type(each) is int and 0 < each <= _COUNTS[name] for each in values):
        _refuse(prefix + name, value, f"whole numbers from 1 to {_COUNTS[name]}")


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _refuse(name: object, value: object, expected: str) -> None:
    raise CheckpointError(
        f"the config recorded in it says {name!r:.99}: {value!r:.99}, but expected {expected}; if you trust the "
        "weights, save them without meta['cfg']"
    )
