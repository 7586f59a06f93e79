"""What an exported file computes, and what the model itself computes of the same pictures, to be held against it."""
import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from torch import Tensor, nn

from ce_mm.export.pictures import Preparation, reads_rgb
from ce_mm.export.runtimes import first_line
from ce_mm.launching.config import steps_of_test, type_name
from ce_mm.layers import fold
from ce_mm.version import __version__

#: Of a picture whose maps tell the strides.
SIDE = 128
#: Steps of a test pipeline that lay out the data, which says nothing about pictures.
_NOT_OF_PICTURES = ("LoadAnnotations", "PackInputs", "PackDetInputs")


class Subject:
    """A network to export, from RGB pictures (N, C, H, W), float32 from 0 to 255, to several tensors.

    Args:
        model: in eval mode; a classifier of mmpretrain's, whole, with the outputs ``scores`` and ``logits``, both
            (N, classes).
        config: the model's.
        backbone: the backbone alone, of a detector too, with an output ``map0``, ``map1``, ... for each of its maps.

    Attributes:
        channels: C.
        outputs: name -> what it is, for each tensor.

    Raises:
        ValueError: it cannot be exported; the message says why, and what can.
    """

    def __init__(self, model: nn.Module, config: Config, backbone: bool) -> None:
        if backbone and not isinstance(getattr(model, "backbone", None), nn.Module):
            raise ValueError(f"a {type(model).__name__} has no backbone to export")
        self._model, self._config, self._reads_rgb = model, config, reads_rgb(config)
        self._network = model.backbone if backbone else model
        self._to_scores = None if backbone else _to_scores(model)
        self._preparation = Preparation(model.data_preprocessor, self._reads_rgb)
        convolutions = (module for module in self._network.modules() if isinstance(module, nn.Conv2d))
        self.channels = next((first.in_channels for first in convolutions), 3)
        if backbone:
            maps = self.expected(torch.zeros(1, self.channels, SIDE, SIDE))
            self.outputs = {f"map{number}": self._describe(y) for number, y in enumerate(maps)}
        else:
            meaning = f"{type(self._to_scores).__name__.lower()} of the logits"
            self.outputs = dict(scores=f"float32 (batch, classes), {meaning}", logits="float32 (batch, classes)")

    def _describe(self, y: object) -> str:
        if not isinstance(y, Tensor) or y.dim() != 4:
            raise ValueError(f"the backbone {type(self._network).__name__} gives other things than maps (N, C, H, W)")
        return f"float32 (batch, {y.shape[1]}, h, w), stride {SIDE // y.shape[2]}"

    def module(self) -> nn.Module:
        """The network of standard operators, CE folded."""
        exported = _Exported(self._preparation, fold(self._network), self._to_scores)
        return exported.eval().requires_grad_(False)

    def expected(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """The outputs for a batch by the model as it was trained, behind its own data_preprocessor.

        Raises:
            ValueError: it fails.
        """
        given = pictures if self._reads_rgb or pictures.shape[1] != 3 else pictures.flip(1)
        try:
            with torch.no_grad():
                x = self._model.data_preprocessor(dict(inputs=given), training=False)["inputs"]
                if self._to_scores is None:
                    return _as_tuple(self._network(x))
                features, head = self._model.extract_feat(x), self._model.head
                return torch.stack([sample.pred_score for sample in head.predict(features)]), head(features)
        except Exception as error:  # whatever the network's own code makes of its input
            raise ValueError(
                f"the network does not run on pictures of {'×'.join(map(str, pictures.shape))}: {first_line(error)}; "
                "only networks that take pictures of any size are exported"
            ) from error

    def metadata(self) -> dict[str, str]:
        """What a file says of itself."""
        order = ", RGB" if self.channels == 3 else ""
        inside = "mean and std are applied inside" if self._preparation.mean is not None else "taken as they are"
        if self._preparation.divisor > 1:
            inside += f", and right and bottom are padded to a multiple of {self._preparation.divisor}"
        steps = [dict(step) for step in steps_of_test(self._config) if isinstance(step, dict)]
        return dict(
            producer=f"ce_mm {__version__}, PyTorch {torch.__version__}",
            config=Path(self._config.filename).name,
            pictures=f"float32 (batch, {self.channels}, height, width){order}, 0 to 255; {inside}",
            **self.outputs,
            test_pipeline=json.dumps([step for step in steps if type_name(step) not in _NOT_OF_PICTURES], default=str),
        )


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


def _to_scores(model: nn.Module) -> nn.Module:
    """From logits to a classifier's scores: the head's own way makes a list of samples, which cannot be exported."""
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            f"a {type(model).__name__} cannot be exported whole; expected mmpretrain's ImageClassifier (a detector "
            "decides on the values of boxes while it runs, which no exporter records); export its backbone with "
            "--backbone"
        )
    predicts = getattr(type(model.head), "_get_predictions", None)
    if predicts is ClsHead._get_predictions:
        return nn.Softmax(dim=1)
    if predicts is MultiLabelClsHead._get_predictions:
        return nn.Sigmoid()
    kind = "no head" if model.head is None else f"a {type(model.head).__name__}"
    raise ValueError(
        f"a classifier with {kind} cannot be exported whole; expected a head that scores one label or several "
        "(ClsHead or MultiLabelClsHead, or one built on them); export its backbone with --backbone"
    )
