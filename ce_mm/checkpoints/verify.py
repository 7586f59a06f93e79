"""Can these weights be what they should be: finite, buffers plausible, and names, shapes and types those of a model?

The model itself says which names it takes, by its own loading: a CE network takes those of a plain one, for example.
"""
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ce_mm.checkpoints.reading import weights_of

#: A float32 product of matrices is symmetric to about 1e-6.
_ASYMMETRY = 1e-4


def _is_like_a_whitening(values: Tensor) -> Tensor:
    """Where Σ^(-1/2), (groups, g, g), is symmetric, and above 0 on the diagonal."""
    values = values.double()
    asymmetric = (values - values.mT).abs() > _ASYMMETRY * values.abs().amax((1, 2), keepdim=True)
    return ~(asymmetric | torch.diag_embed(values.diagonal(dim1=1, dim2=2) <= 0))


#: Last part of a buffer's name -> what all its values are, in words and as a test.
_PLAUSIBLE: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "running_var": ("a variance above 0", lambda values: values > 0),
    "running_inv_std_scale": ("an average of s^(-1/2), above 0", lambda values: values > 0),
    "num_batches_tracked": ("a count, 0 or more", lambda values: values >= 0),
    "running_whitening": ("symmetric matrices, above 0 on the diagonal", _is_like_a_whitening),
}


class Finding(NamedTuple):
    """What is wrong with one tensor."""

    name: str
    problem: str  #: The value found, and what was expected.

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


def verify(checkpoint: dict, config: Config | None = None) -> list[Finding]:
    """Look at every tensor of a checkpoint.

    Args:
        checkpoint: what ``read_checkpoint`` gives: a dict with ``state_dict``, or the weights themselves; names may
            begin with ``module.``.
        config: of which ``model`` is built: a classifier, a detector, or a backbone (also as ``model =
            dict(backbone=...)`` without a type). Weights of which no name begins with ``backbone.`` are held against
            the backbone of a model that has one. None looks at values alone.

    Returns:
        Findings, those about values first; none if all is well.

    Raises:
        CheckpointError: there are no weights, or something else among them.
        ValueError: the config's model cannot be built.
    """
    weights = weights_of(checkpoint)
    findings = [Finding(name, problem) for name, value in weights.items() for problem in _problems(name, value)]
    if config is None:
        return findings
    model = _build(config)
    if hasattr(model, "backbone") and not any(name.startswith("backbone.") for name in weights):
        model = model.backbone
    return [*findings, *_misfits(weights, model)]


def _problems(name: str, values: Tensor) -> Iterator[str]:
    """What is wrong with the values of a tensor; where some are not finite, that alone."""
    kind = name.rpartition(".")[2]
    try:
        finite = torch.isfinite(values.float() if values.dtype.itemsize == 1 else values)
    except NotImplementedError:
        yield f"is of type {values.dtype}, which PyTorch can store but not compute with; expected another type"
        return
    if not finite.all():
        yield _first(values, ~finite, "finite numbers")
    elif kind == "running_whitening" and (values.dim() != 3 or values.shape[1] != values.shape[2]):
        yield f"is of shape {tuple(values.shape)}; expected a square matrix for each group"
    elif kind in _PLAUSIBLE:
        expected, holds = _PLAUSIBLE[kind]
        if not holds(values).all():
            yield _first(values, ~holds(values), expected)


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


def _misfits(weights: Mapping[str, Tensor], model: nn.Module) -> Iterator[Finding]:
    """Where names, shapes and types are not those of the model, which loads the others."""
    own = model.state_dict()
    fitting = dict(weights)
    for name in (name for name in weights if name in own):
        if weights[name].shape != own[name].shape:
            yield Finding(name, f"is of shape {tuple(weights[name].shape)}; expected {tuple(own[name].shape)}")
            fitting[name] = own[name]
        elif weights[name].dtype != own[name].dtype:
            yield Finding(name, f"is of type {weights[name].dtype}; expected {own[name].dtype}")
    try:
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:  # another shape under a name that the model translates
        yield Finding("the weights", " ".join(str(error).split()))
        return
    for name in missing:
        yield Finding(name, "is missing; the model has it")
    for name in unexpected:
        yield Finding(name, "is unexpected; the model has no such name")
