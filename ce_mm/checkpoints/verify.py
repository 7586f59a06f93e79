"""Can these weights be what they should be: finite, buffers plausible, and names, shapes and types those of a model?

The model itself says which names it takes, by its own loading: a CE network takes those of a plain one, for example.
"""
import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

#: Last part of a buffer's name -> what all its values are, in words and as a test.
_PLAUSIBLE: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "running_var": ("a variance above 0", lambda values: values > 0),
    "running_inv_std_scale": ("an average of s^(-1/2), above 0", lambda values: values > 0),
    "num_batches_tracked": ("a count, 0 or more", lambda values: values >= 0),
}
#: A float32 product of matrices is symmetric to about 1e-6.
_ASYMMETRY = 1e-4


class Finding(NamedTuple):
    """What is wrong with one tensor."""

    name: str
    problem: str  #: The value found, and what was expected.

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


def verify(checkpoint: dict, model: nn.Module | Config | None = None) -> list[Finding]:
    """Look at every tensor of a checkpoint.

    Args:
        checkpoint: what ``read_checkpoint`` gives: a dict with ``state_dict``, or the weights themselves; names may
            begin with ``module.``.
        model: a model, which stays as it is; or a config, of which ``model`` is built: a classifier, a detector, or a
            backbone (also as ``model = dict(backbone=...)`` without a type). Weights of which no name begins with
            ``backbone.`` are held against the backbone of a model that has one. None looks at values alone.

    Returns:
        Findings, those about values first; none if all is well.

    Raises:
        ValueError: the config's model cannot be built.
    """
    weights = weights_of(checkpoint)
    if not weights:
        return [Finding("state_dict", "holds nothing; expected weights, by their names")]
    findings = [Finding(name, problem) for name, value in weights.items() for problem in _problems(name, value)]
    findings += [Finding(name, "is there twice, with and without 'module.' in front") for name in _twice(checkpoint)]
    if model is None:
        return findings
    model = _build(model) if isinstance(model, Config) else model
    if hasattr(model, "backbone") and not any(name.startswith("backbone.") for name in weights):
        model = model.backbone
    return findings + _misfits({name: value for name, value in weights.items() if isinstance(value, Tensor)}, model)


def weights_of(checkpoint: dict) -> dict[str, object]:
    """The weights in a checkpoint by their names without ``module.``; what is no tensor among them, too."""
    return {_short(name): value for name, value in _state(checkpoint).items()}


def _state(checkpoint: dict) -> dict:
    weights = checkpoint.get("state_dict", checkpoint)
    return weights if isinstance(weights, dict) else {"state_dict": weights}


def _short(name: object) -> str:
    return str(name).removeprefix("module.")


def _twice(checkpoint: dict) -> list[str]:
    return [name for name, count in Counter(map(_short, _state(checkpoint))).items() if count > 1]


def _problems(name: str, value: object) -> Iterator[str]:
    """What is wrong with a tensor by itself; with values that are not finite, that alone."""
    if not isinstance(value, Tensor):
        yield f"is of type {type(value).__name__}; expected a tensor"
        return
    if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.is_meta:
        yield f"has no plain numbers ({value.layout}, {value.dtype}, on {value.device}); expected a dense tensor"
        return
    kind = name.rpartition(".")[2]
    values = value.detach()
    try:
        finite = torch.isfinite(values.float() if values.dtype.itemsize == 1 else values)
    except NotImplementedError:
        yield f"is of type {values.dtype}, which PyTorch can store but not compute with; expected another type"
        return
    if not finite.all():
        yield _first(values, ~finite, "finite numbers")
    elif kind in _PLAUSIBLE:
        expected, holds = _PLAUSIBLE[kind]
        if not holds(values).all():
            yield _first(values, ~holds(values), expected)
    elif kind == "running_whitening":
        yield from _whitening_problems(values)


def _whitening_problems(values: Tensor) -> Iterator[str]:
    """Of Σ^(-1/2), (groups, g, g), which is symmetric and positive definite."""
    if values.dim() != 3 or values.shape[1] != values.shape[2]:
        yield f"is of shape {tuple(values.shape)}; expected a square matrix for each group"
        return
    values = values.double()
    difference = (values - values.mT).abs()
    asymmetric = difference > _ASYMMETRY * values.abs().amax((1, 2), keepdim=True)
    if asymmetric.any():
        group, row, column = asymmetric.nonzero()[0].tolist()
        yield (
            f"holds {values[group, row, column].item():g} at [{group}, {row}, {column}] but "
            f"{values[group, column, row].item():g} at [{group}, {column}, {row}]; expected symmetric matrices"
        )
    negative = torch.diag_embed(values.diagonal(dim1=1, dim2=2) <= 0)
    if negative.any():
        yield _first(values, negative, "numbers above 0 on the diagonal")


def _first(values: Tensor, wrong: Tensor, expected: str) -> str:
    """The first of the wrong values, how many more there are, and what was expected."""
    index = wrong.nonzero()[0].tolist()
    place = f" at {index}" if index else ""
    others = int(wrong.sum()) - 1
    more = f" and {others} more such value{'s' if others > 1 else ''}" if others else ""
    return f"holds {values[tuple(index)].item():g}{place}{more}; expected {expected}"


def _build(config: Config) -> nn.Module:
    name, model = config.filename or "the config", config.get("model")
    if not isinstance(model, dict):
        raise ValueError(f"{name}: expected a config with a model, got model = {model!r}")
    if "type" not in model and "backbone" in model:
        model = model.backbone
    try:
        with DefaultScope.overwrite_default_scope(config.get("default_scope")):
            return MODELS.build(model)
    except Exception as error:  # whatever the model's own code makes of its arguments
        raise ValueError(f"{name}: the model cannot be built: {type(error).__name__}: {error}") from error


def _misfits(weights: dict[str, Tensor], model: nn.Module) -> list[Finding]:
    """Where names, shapes and types are not the model's."""
    shell = copy.deepcopy(model).to("meta").requires_grad_(False)  # takes names, shapes and types, but no numbers
    missing, unexpected = [], []

    def note(_: nn.Module, keys: NamedTuple) -> None:
        missing.extend(keys.missing_keys)
        unexpected.extend(keys.unexpected_keys)

    shell.register_load_state_dict_post_hook(note)
    findings = []
    try:
        shell.load_state_dict({name: value.to("meta") for name, value in weights.items()}, strict=False, assign=True)
    except RuntimeError as error:  # raised for other shapes, after the hook
        for line in str(error).splitlines()[1:]:
            found = re.search(r"size mismatch for (\S+): .* shape (.+) from .* shape in current model is (.+)\.", line)
            findings.append(
                Finding(found[1], f"is of shape {_shape(found[2])}; expected {_shape(found[3])}")
                if found
                else Finding("the weights", line.strip())
            )
    taken = shell.state_dict()
    findings += [
        Finding(name, f"is of type {taken[name].dtype}; expected {value.dtype}")
        for name, value in model.state_dict().items()
        if taken[name].dtype != value.dtype
    ]
    findings += [Finding(name, "is missing; the model has it") for name in missing]
    return findings + [Finding(name, "is unexpected; the model has no such name") for name in unexpected]


def _shape(text: str) -> str:
    return f"({text.removeprefix('torch.Size([').removesuffix('])')})"
