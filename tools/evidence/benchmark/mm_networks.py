"""Whole networks of the OpenMMLab libraries, each with BN and with CE (and with SE where the library has it).

Raises ImportError where a library is missing; nothing here is imported before it is asked for.
"""
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ce_mm.compat.requirements import require
from tools.evidence.benchmark.cases import Case, backbone_case
from tools.evidence.benchmark.settings import Settings

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample
    from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[3]


def resnet50(settings: Settings) -> dict[str, Case]:
    """mmpretrain's ResNet-50 and SE-ResNet-50, and CE-ResNet-50."""
    require("mmpretrain")
    from mmpretrain.models.backbones import SEResNet

    cases = backbones("ResNet", settings, depth=50)
    return {"BN": cases["BN"], "BN+SE": backbone_case(SEResNet(50), settings), "CE": cases["CE"]}


def backbones(name: str, settings: Settings, **arguments: Any) -> dict[str, Case]:
    """mmpretrain's backbone of this name, and ours with CE, of the same arguments."""
    require("mmpretrain")
    from mmpretrain.models import backbones as theirs

    from ce_mm import backbones as ours

    kinds = dict(BN=getattr(theirs, name), CE=getattr(ours, f"CE{name}"))
    return {variant: backbone_case(kind(**arguments), settings) for variant, kind in kinds.items()}


def mask_rcnn(settings: Settings) -> dict[str, Case]:
    """mmdet's Mask R-CNN R50, and our config of it with CE, on two pictures of 320×320."""
    require("mmengine", "mmdet")
    from mmengine.config import Config
    from mmengine.hub import get_config

    configs = dict(
        BN=get_config("mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py"),
        CE=Config.fromfile(ROOT / "configs/coco/mask-rcnn_ce-r50_fpn_2x_coco.py"),
    )
    return _detectors(configs, settings, batch=2, size=(320, 320), objects=32)


def demo(settings: Settings) -> dict[str, Case]:
    """The demo's Mask R-CNN with CE-ResNet-18, and with a plain one, on its batch of four pictures."""
    require("mmengine", "mmdet")
    from mmengine.config import Config

    ce = Config.fromfile(ROOT / "configs/shapes/mask-rcnn_ce-r18_fpn_shapes.py")
    bn = copy.deepcopy(ce)
    bn.model.backbone.type = "mmpretrain.ResNet"
    return _detectors(dict(BN=bn, CE=ce), settings, batch=ce.train_dataloader.batch_size, size=(160, 192), objects=24)


def _detectors(
    configs: Mapping[str, "Config"], settings: Settings, batch: int, size: tuple[int, int], objects: int
) -> dict[str, Case]:
    """Detectors, each with its own losses on the same random pictures, of height and width ``size``.

    All propose the same boxes, as those of random weights may be of any size, on which the time of RoIAlign depends. As
    many positive samples as there are objects are drawn from each picture, and of as many boxes inference tells the
    class. So all variants have the same work.
    """
    from mmengine.registry import MODELS, DefaultScope

    if settings.quick:
        size, objects = (64, 64), 4
    classes = configs["BN"].model.roi_head.bbox_head.num_classes
    pictures = settings.random_map(batch, 3, *size)
    truth = [_random_objects(size, objects, classes).to(settings.device) for _ in range(batch)]
    cases = {}
    for name, config in configs.items():
        config.model.backbone.init_cfg = None
        sampler = config.model.train_cfg.rcnn.sampler
        samples = 32 if settings.quick else sampler.num
        sampler.update(num=samples, pos_fraction=objects / samples)
        config.model.test_cfg.rpn.max_per_img = 2 * samples
        with DefaultScope.overwrite_default_scope("mmdet"):
            detector = MODELS.build(config.model)
        for layer in (detector.rpn_head.rpn_cls, detector.rpn_head.rpn_reg):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        cases[name] = _detector_case(settings.placed(detector), pictures, truth, settings)
    return cases


def _detector_case(detector: nn.Module, pictures: Tensor, truth: list, settings: Settings) -> Case:
    def run() -> Tensor:
        with settings.autocast():
            return detector.parse_losses(detector(pictures, truth, mode="loss"))[0]

    def infer() -> object:
        with settings.autocast():
            return detector(pictures, truth, mode="tensor")

    return Case(detector, run, infer=infer)


def _random_objects(size: tuple[int, int], count: int, classes: int) -> "DetDataSample":
    """A sample of mmdet with random boxes, whose masks fill them."""
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    sides = torch.tensor([size[1], size[0]])
    corners = torch.rand(count, 2) * 0.6
    boxes = torch.cat([corners, corners + 0.1 + 0.3 * torch.rand(count, 2)], dim=1) * sides.repeat(2)
    masks = np.zeros((count, *size), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    )
    labels = torch.randint(classes, (count,))
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, *size))
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=labels[:0])
    return sample
