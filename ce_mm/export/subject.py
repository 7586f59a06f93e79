"""What an exported file computes, and what the model itself computes of the same pictures, to be held against it."""
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from torch import Tensor, nn

from ce_mm.export.pictures import Preparation, reads_rgb
from ce_mm.export.runtimes import Network, first_line
from ce_mm.launching.config import dicts, type_name
from ce_mm.layers import fold
from ce_mm.version import __version__

#: Of a picture whose maps tell the strides.
SIDE = 128
#: Steps of a test pipeline that lay out the data, which says nothing about pictures.
_NOT_OF_PICTURES = ("LoadAnnotations", "PackInputs", "PackDetInputs")


@dataclass(frozen=True)
class Subject:
    """A network to export, from RGB pictures (N, C, H, W), float32 from 0 to 255, to several tensors."""

    #: Of standard operators, in eval mode, CE folded.
    module: nn.Module
    #: The same by the model as it was trained, with its own data_preprocessor.
    reference: Network
    #: C.
    channels: int
    #: Name -> what it is, for each tensor.
    outputs: dict[str, str]
    #: What a file says of itself.
    metadata: dict[str, str]


def classifier(model: nn.Module, config: Config) -> Subject:
    """A classifier of mmpretrain, whole, with outputs ``scores`` and ``logits``, both (N, classes).

    Raises:
        ValueError: the model is no such classifier, or it cannot be exported; the message says why, and what can.
    """
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            f"a {type(model).__name__} cannot be exported whole; expected mmpretrain's ImageClassifier (a detector "
            "decides on the values of boxes while it runs, which no exporter records); export its backbone with "
            "--backbone"
        )
    head = model.head
    # The head itself makes a list of samples of its logits, which cannot be exported. These are the two usual ways.
    predicts = getattr(type(head), "_get_predictions", None)
    if predicts is ClsHead._get_predictions:
        to_scores, meaning = nn.Softmax(dim=1), "softmax of the logits"
    elif predicts is MultiLabelClsHead._get_predictions:
        to_scores, meaning = nn.Sigmoid(), "sigmoid of the logits"
    else:
        kind = "no head" if head is None else f"a {type(head).__name__}"
        raise ValueError(
            f"a classifier with {kind} cannot be exported whole; expected a head that scores one label or several "
            "(ClsHead or MultiLabelClsHead, or one built on them); export its backbone with --backbone"
        )

    def reference(pictures: Tensor) -> tuple[Tensor, ...]:
        features = model.extract_feat(_prepared(model, pictures, config))
        samples = head.predict(features)
        return torch.stack([sample.pred_score for sample in samples]), head(features)

    outputs = dict(scores=f"float32 (batch, classes), {meaning}", logits="float32 (batch, classes)")
    return _subject(model, model, to_scores, reference, outputs, config)


def backbone(model: nn.Module, config: Config) -> Subject:
    """The backbone of a classifier or a detector, with an output ``map0``, ``map1``, ... for each of its maps.

    Raises:
        ValueError: the model has no backbone, or it does not run, or gives something else than maps.
    """
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        raise ValueError(f"a {type(model).__name__} has no backbone to export")

    def reference(pictures: Tensor) -> tuple[Tensor, ...]:
        return _as_tuple(model.backbone(_prepared(model, pictures, config)))

    outputs = {}
    for number, y in enumerate(run(reference, torch.zeros(1, _channels(model.backbone), SIDE, SIDE))):
        if not isinstance(y, Tensor) or y.dim() != 4:
            raise ValueError(f"the backbone {type(model.backbone).__name__} gives other things than maps (N, C, H, W)")
        outputs[f"map{number}"] = f"float32 (batch, {y.shape[1]}, h, w), stride {SIDE // y.shape[2]}"
    return _subject(model, model.backbone, None, reference, outputs, config)


def run(reference: Network, pictures: Tensor) -> tuple[Tensor, ...]:
    """What the model itself computes of a batch.

    Raises:
        ValueError: it fails.
    """
    try:
        with torch.no_grad():
            return reference(pictures)
    except Exception as error:  # whatever the network's own code makes of its input
        raise ValueError(
            f"the network does not run on pictures of {'×'.join(map(str, pictures.shape))}: {first_line(error)}; only "
            "networks that take pictures of any size are exported"
        ) from error


class _Exported(nn.Module):
    """From pictures to scores and logits, or, without scores, to all that the network gives."""

    def __init__(self, preparation: Preparation, network: nn.Module, to_scores: nn.Module | None) -> None:
        super().__init__()
        self.preparation, self.network, self.to_scores = preparation, network, to_scores

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        y = self.network(self.preparation(pictures))
        return _as_tuple(y) if self.to_scores is None else (self.to_scores(y), y)


def _as_tuple(maps: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (maps,) if isinstance(maps, Tensor) else tuple(maps)


def _prepared(model: nn.Module, pictures: Tensor, config: Config) -> Tensor:
    """What the model's own data_preprocessor makes of RGB pictures, which it may expect as BGR."""
    given = pictures if reads_rgb(config) or pictures.shape[1] != 3 else pictures.flip(1)
    return model.data_preprocessor(dict(inputs=given), training=False)["inputs"]


def _channels(network: nn.Module) -> int:
    """How many channels a picture has, by the network's first convolution."""
    return next((module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)), 3)


def _subject(
    model: nn.Module,
    network: nn.Module,
    to_scores: nn.Module | None,
    reference: Network,
    outputs: dict[str, str],
    config: Config,
) -> Subject:
    preparation = Preparation(model.data_preprocessor, reads_rgb(config))
    module = _Exported(preparation, fold(network), to_scores).eval().requires_grad_(False)
    channels = _channels(network)
    order = ", RGB" if channels == 3 else ""
    inside = "mean and std are applied inside" if preparation.mean is not None else "taken as they are"
    if preparation.divisor > 1:
        inside += f", and right and bottom are padded to a multiple of {preparation.divisor}"
    metadata = dict(
        producer=f"ce_mm {__version__}, PyTorch {torch.__version__}",
        config=Path(config.filename).name,
        pictures=f"float32 (batch, {channels}, height, width){order}, 0 to 255; {inside}",
        **outputs,
        test_pipeline=json.dumps(_test_pipeline(config), default=str),
    )
    return Subject(module, reference, channels, outputs, metadata)


def _test_pipeline(config: Config) -> list[dict]:
    """What the config's test does to a picture before the model gets it."""
    nodes = dicts(config.get("test_dataloader"))
    steps = next((node["pipeline"] for node in nodes if isinstance(node.get("pipeline"), list)), [])
    return [dict(step) for step in steps if isinstance(step, dict) and type_name(step) not in _NOT_OF_PICTURES]
