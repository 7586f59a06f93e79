"""What a network costs: its parameters, and the multiply-adds of a forward pass, with the work of CE told apart.

A multiply-add counts once, as in the paper and the field's tables: ResNet-50 has 4.1 G at 224×224. Counted are
convolutions, linear layers, matrix products, and all that CE does to a map: there, a lone subtraction or sum of an
element is one multiply-add too. Not counted, as usual, is the elementwise work of other layers (plain norms,
activations, pools, residual adds), nor CE's on vectors and small matrices. PyTorch's ``FlopCounterMode`` does the
counting, by the shapes of a forward pass on the meta device, which computes nothing and takes no memory.
"""
import copy
import math
from collections import Counter
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ce_mm.layers import CENorm

#: RoIs that the heads of a two-stage detector are counted for: as many as its test settings keep. Mask heads see the
#: first 100 of them, as in mmdet's forward pass without post-processing.
ROIS = 1000

_LAYERS = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)
#: Pictures of datasets that no pipeline needs to resize.
_SIZES = {"CIFAR10": 32, "CIFAR100": 32}
_MOMENTS, _AFFINE = torch.ops.ce_mm.moments, torch.ops.ce_mm.group_affine


@dataclass(frozen=True)
class Complexity:
    """Parameters, and multiply-adds of the forward pass of one picture."""

    parameters: int
    trainable: int  #: parameters that training changes: without those of frozen stages
    layers: int  #: convolutions and linear layers, those of SE included
    moments: int  #: CE's first pass over the maps
    coefficients: int  #: CE's matrix products on small tensors, such as Newton-Schulz's and the gate's
    affine: int  #: CE's last pass over the maps
    other: int  #: matrix products elsewhere, such as attention's

    @property
    def ce(self) -> int:
        """All of CE's multiply-adds."""
        return self.moments + self.coefficients + self.affine

    @property
    def total(self) -> int:
        """All multiply-adds."""
        return self.layers + self.ce + self.other


def complexity(network: nn.Module | Config, shape: tuple[int, int, int], training: bool = False) -> Complexity:
    """Count parameters and the multiply-adds of a forward pass.

    Args:
        network: a classifier, backbone, detector or any other module that takes a map; or a config with such a
            ``model``. It is left as it is. Classifiers and one-stage detectors are counted whole, without loss or
            post-processing. Two-stage detectors (with mmdet's StandardRoIHead): backbone, neck, RPN, and the heads
            for :data:`ROIS` RoIs; the RoI pooling itself counts nothing.
        shape: C, H, W of the picture, the only one of its batch: what CE does once for a batch is counted whole.
        training: count the forward pass in training mode, in which CE takes its covariance; else that of inference.

    Raises:
        ValueError: a wrong shape, a config whose model cannot be built, a network that does not take such pictures.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"the shape of a picture is C, H, W, all at least 1, not {tuple(shape)}")
    if isinstance(network, Config):
        network = build(network)
    network = revert_sync_batchnorm(_meta_copy(network))  # SyncBN trains on GPUs alone
    network.train(training)  # not chained: the train() of mmpretrain's backbones returns nothing
    parameters = list(network.parameters())

    # The matrix products of the coefficients are told from other layers' by where they happen.
    counter, inside = FlopCounterMode(display=False), Counter()
    for module in network.modules():
        if isinstance(module, CENorm):
            module.register_forward_pre_hook(lambda *_: inside.subtract(counter.flop_counts["Global"]))
            module.register_forward_hook(lambda *_: inside.update(counter.flop_counts["Global"]))
    try:
        with torch.no_grad(), counter:
            _forward(network, torch.empty(1, *shape, device="meta"))
    except Exception as error:  # whatever the network's own code makes of its input
        name, size = type(network).__name__, "×".join(map(str, shape))
        raise ValueError(f"{name} does not run on a picture of {size}: {type(error).__name__}: {error}") from error

    def multiply_adds(flops: int) -> int:
        return flops // 2  # FlopCounterMode's formulas count the multiplication and the addition

    outside = Counter(counter.flop_counts["Global"])
    outside.subtract(inside)
    # Norms other than CE may use CE's operators: elementwise work.
    del outside[_MOMENTS], outside[_AFFINE]
    layers = sum(outside[operator] for operator in _LAYERS)
    return Complexity(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        layers=multiply_adds(layers),
        moments=multiply_adds(inside[_MOMENTS]),
        coefficients=multiply_adds(inside.total() - inside[_MOMENTS] - inside[_AFFINE]),
        affine=multiply_adds(inside[_AFFINE]),
        other=multiply_adds(outside.total() - layers),
    )


def picture_shape(config: Config) -> tuple[int, int, int]:
    """C, H, W of the largest picture that a config's test pipeline makes, padded as its detector pads a batch.

    Raises:
        ValueError: the pipeline has no step that sets a size.
    """
    dataset = (config.get("test_dataloader") or {}).get("dataset") or {}
    size = _SIZES.get(dataset.get("type"))
    for step in dataset.get("pipeline") or ():
        size = step.get("scale" if step["type"] == "Resize" else "crop_size", size)
    if size is None:
        raise ValueError(
            f"{config.filename}: the pipeline of test_dataloader has no Resize or CenterCrop, which would say how "
            "large a picture is; give the shape (--shape H W)"
        )
    width, height = (size, size) if isinstance(size, int) else size
    divisor = ((config.model.get("data_preprocessor") or {}).get("pad_size_divisor")) or 1
    return 3, math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor


def build(config: Config) -> nn.Module:
    """The model of a config, with fresh weights.

    Raises:
        ValueError: it cannot be built; the message has the reason.
    """
    try:
        with DefaultScope.overwrite_default_scope(config.get("default_scope")):
            return MODELS.build(config.model)
    except Exception as error:  # whatever the model's own code makes of its arguments
        raise ValueError(f"the model of {config.filename} cannot be built: {type(error).__name__}: {error}") from error


def _meta_copy(network: nn.Module) -> nn.Module:
    """A copy of a module whose parameters and buffers have shapes, and no values."""
    memo = {}  # deepcopy takes for done what its memo holds
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, memo)


def _forward(network: nn.Module, picture: Tensor) -> None:
    if hasattr(network, "roi_head"):
        _forward_two_stages(network, picture)
    elif isinstance(network, BaseModel):
        network(picture, mode="tensor")
    else:
        network(picture)


def _forward_two_stages(detector: nn.Module, picture: Tensor) -> None:
    """What mmdet's ``_forward`` does, without the values of proposals: these would choose the levels RoIs come from."""
    from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
    from mmengine.structures import InstanceData

    for extractor in detector.roi_head.modules():
        if isinstance(extractor, BaseRoIExtractor):
            extractor.forward = lambda maps, rois, extractor=extractor: maps[0].new_empty(
                len(rois), extractor.out_channels, *extractor.roi_layers[0].output_size
            )
    maps = detector.extract_feat(picture)
    detector.rpn_head(maps)
    detector.roi_head.forward(maps, [InstanceData(bboxes=picture.new_empty(ROIS, 4))])
