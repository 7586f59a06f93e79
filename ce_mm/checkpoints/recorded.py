"""What the config that mmengine's training writes into a checkpoint says of a backbone, read as data.

It is the text of a Python file (``meta['cfg']``), which mmengine would run, and whose ``type`` with a dot in it
mmengine's registry would import. Here only ``model = ...`` is looked at, only numbers, text, lists, tuples and dicts
are understood, and of those only what leaves no trace in weights is taken: known arguments with plain values, and the
usual layers. The rest is what the weights themselves say (:mod:`ce_mm.checkpoints.architecture`).
"""
import ast
import math

from ce_mm.checkpoints.reading import CheckpointError
from ce_mm.layers.norms import norm_names

#: The types that a layer in a recorded config may have, beside the kinds of norm: rectifiers, convolutions.
_RECTIFIERS = ("ReLU", "LeakyReLU", "PReLU", "RReLU", "ReLU6", "ELU", "SiLU", "GELU", "HSwish", "Sigmoid", "Tanh")
_TYPES = (*_RECTIFIERS, "Conv", "Conv2d")
_UNTRACED = ("style", "strides", "dilations", "ceil_mode", "with_last_pool", "norm_cfg", "act_cfg", "conv_cfg")
_SETTINGS = ("ce_cfg", "ce_stem_cfg")
#: What Python's parser raises for bad text; TypeError is that of a dict's key that is a list.
_BAD_TEXT = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


def recorded_backbone(text: object) -> dict:
    """The ``backbone`` of the ``model`` of a config; {} where there is none, or it is no data."""
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
    """Of a recorded backbone the arguments that leave no trace in weights; the settings of CE only where it has ``ce``.

    Raises:
        CheckpointError: one of them is more than plain values and the usual layers.
    """
    found = {}
    for name in (*_UNTRACED, *(_SETTINGS if ce else ())):
        value = recorded.get(name)
        if value is not None and value != {}:
            _check(name, value)
            found[name] = tuple(value) if isinstance(value, list) else value
    if isinstance(norm := found.get("norm_cfg"), dict):  # how it was trained, frozen or on several processes, goes
        kind = dict(type="BN") if norm.get("type") == "SyncBN" else {}
        found["norm_cfg"] = {name: value for name, value in norm.items() if name != "requires_grad"} | kind
    return found


def _check(name: str, value: object) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not str(key).isidentifier() or str(key).startswith("_"):
                _refuse(f"{name}.{key}", inner, "the name of an argument")
            if key == "type" and inner not in (types := (*norm_names(), *_TYPES)):
                _refuse(name, value, f"one of the types {', '.join(types)}")
            _check(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(name, inner)
    elif not (isinstance(value, int | str | None) or (isinstance(value, float) and math.isfinite(value))):
        _refuse(name, value, "numbers or text")


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
