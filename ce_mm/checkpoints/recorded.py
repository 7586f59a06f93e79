"""What the config that mmengine's training writes into a checkpoint says of a backbone, read as data.

It is the text of a Python file (``meta['cfg']``), which mmengine would run, and whose ``type`` with a dot in it
mmengine's registry would import. Here only ``model = ...`` is looked at, only numbers, text, lists, tuples and dicts
are understood, and of those only what leaves no trace in weights is taken: known arguments with plain values, and a few
layers. The rest is what the weights themselves say (:mod:`ce_mm.checkpoints.architecture`).
"""
import ast
import inspect
import math

from ce_mm.checkpoints.reading import CheckpointError
from ce_mm.layers import CENorm

_NORMS = ("BN", "BN2d", "SyncBN", "GN", "LN", "IN", "IN2d", "SN")
_RECTIFIERS = ("ReLU", "LeakyReLU", "PReLU", "RReLU", "ReLU6", "ELU", "SiLU", "GELU", "HSwish", "Sigmoid", "Tanh")
#: Argument that is the config of a layer -> types that it may have.
_LAYERS = {"norm_cfg": _NORMS, "norm": _NORMS, "act_cfg": _RECTIFIERS, "conv_cfg": ("Conv", "Conv2d")}
_SETTINGS = ("ce_cfg", "ce_stem_cfg")
_UNTRACED = ("style", "strides", "dilations", "ceil_mode", "with_last_pool", "norm_cfg", "act_cfg", "conv_cfg")
#: What Python's parser raises for bad text; TypeError is that of a dict's key that is a list.
_BAD_TEXT = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


def recorded_backbone(meta: dict) -> dict:
    """The ``backbone`` of the ``model`` of the config in ``meta``; {} where there is none, or it is no data."""
    text = meta.get("cfg")
    try:
        for statement in ast.parse(text).body if isinstance(text, str) else ():
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "model":
                model = ast.literal_eval(_DictsAsDisplays().visit(statement.value))
                backbone = model.get("backbone") if isinstance(model, dict) else None
                return backbone if isinstance(backbone, dict) else {}
    except _BAD_TEXT:
        pass
    return {}


def untraced(recorded: dict, ce: bool) -> dict:
    """Of a recorded backbone the arguments that leave no trace in weights.

    Args:
        recorded: what :func:`recorded_backbone` gives.
        ce: whether the settings of CE are looked at, too.

    Raises:
        CheckpointError: one of them is more than plain values and the usual layers.
    """
    found = {}
    for name in (*_UNTRACED, *(_SETTINGS if ce else ())):
        value = recorded.get(name)
        if value is not None and value != {}:
            _check(name, value)
            value = tuple(value) if isinstance(value, list) else value
            found |= {name: _without_training(value) if name == "norm_cfg" else value}
    return found


def _without_training(norm: dict) -> dict:
    """A norm without how it was trained: frozen, on several processes."""
    kind = "BN" if norm["type"] == "SyncBN" else norm["type"]
    return {name: value for name, value in norm.items() if name != "requires_grad"} | dict(type=kind)


def _check(name: str, value: object) -> None:
    key = name.rpartition(".")[2]
    if key in _SETTINGS and isinstance(value, dict):
        for setting, inner in value.items():
            if setting not in inspect.signature(CENorm).parameters:
                _refuse(f"{name}.{setting}", inner, "an argument of CENorm")
            _check(f"{name}.{setting}", inner)
    elif key in _LAYERS and value is not None:
        if not isinstance(value, dict) or value.get("type") not in _LAYERS[key]:
            _refuse(name, value, f"a dict with one of the types {', '.join(_LAYERS[key])}")
        for argument, inner in value.items():
            if not str(argument).isidentifier() or str(argument).startswith("_") or not _is_plain(inner):
                _refuse(f"{name}.{argument}", inner, "an argument with a plain value")
    elif not all(map(_is_plain, value if isinstance(value, list | tuple) else [value])):
        _refuse(name, value, "a number or text, or several in a list")


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _refuse(name: str, value: object, expected: str) -> None:
    raise CheckpointError(
        f"the config recorded in it says {name!r:.99}: {value!r:.99}, but expected {expected}; if you trust the "
        "weights, save them without meta['cfg']"
    )


class _DictsAsDisplays(ast.NodeTransformer):
    """``dict(a=1)``, as mmengine writes it, as ``{'a': 1}``, which Python reads as data."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        names = [keyword.arg for keyword in node.keywords]
        if not isinstance(node.func, ast.Name) or node.func.id != "dict" or node.args or None in names:
            return node
        return ast.Dict([ast.Constant(name) for name in names], [keyword.value for keyword in node.keywords])
