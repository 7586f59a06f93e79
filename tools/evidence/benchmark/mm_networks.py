"""Whole networks of the OpenMMLab libraries, each with BN and with CE (and with SE where the library has it).

Raises ImportError where a library is missing; nothing here is imported before it is asked for.
"""
from pathlib import Path

import torch
from torch import Tensor, nn

from ce_mm.compat.requirements import require
from tools.evidence.benchmark.cases import Case, backbone_case
from tools.evidence.benchmark.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


def resnet50(settings: Settings) -> dict[str, Case]:
    """mmpretrain's ResNet-50 and SE-ResNet-50, and CE-ResNet-50."""
    require("mmpretrain")
    from mmpretrain.models.backbones import ResNet, SEResNet

    from ce_mm.backbones import CEResNet

    backbones = {"BN": ResNet(50), "BN+SE": SEResNet(50), "CE": CEResNet(50)}
    return {name: backbone_case(backbone, settings) for name, backbone in backbones.items()}


def mobilenet_v2(settings: Settings) -> dict[str, Case]:
    """mmpretrain's MobileNetV2 and CE-MobileNetV2."""
    require("mmpretrain")
    from mmpretrain.models.backbones import MobileNetV2

    from ce_mm.backbones import CEMobileNetV2

    return {"BN": backbone_case(MobileNetV2(), settings), "CE": backbone_case(CEMobileNetV2(), settings)}


def mask_rcnn(settings: Settings) -> dict[str, Case]:
    """mmdet's Mask R-CNN R50, and our config of it with CE, each with its own losses on two random pictures.

    As many positive samples as there are objects are drawn from each picture, and of as many boxes inference tells the
    class, so that all variants have the same work.
    """
    require("mmengine", "mmdet")
    from mmengine.config import Config
    from mmengine.hub import get_config
    from mmengine.registry import MODELS, DefaultScope

    side, objects, samples = (64, 4, 32) if settings.quick else (320, 32, 512)
    configs = {
        "BN": get_config("mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py"),
        "CE": Config.fromfile(ROOT / "configs/coco/mask-rcnn_ce-r50_fpn_2x_coco.py"),
    }
    pictures = settings.random_map(2, 3, side, side)
    truth = [_random_objects(side, objects).to(settings.device) for _ in range(2)]
    cases = {}
    for name, config in configs.items():
        config.model.backbone.init_cfg = None
        config.model.train_cfg.rcnn.sampler.update(num=samples, pos_fraction=objects / samples)
        config.model.test_cfg.rpn.max_per_img = 2 * samples
        with DefaultScope.overwrite_default_scope("mmdet"):
            detector = MODELS.build(config.model)
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


def _random_objects(side: int, count: int):
    """A sample of mmdet with random boxes, whose masks fill them."""
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    corners = torch.rand(count, 2) * side * 0.6
    boxes = torch.cat([corners, corners + (0.1 + 0.3 * torch.rand(count, 2)) * side], dim=1)
    masks = np.zeros((count, side, side), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    size = (side, side)
    sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    )
    labels = torch.randint(80, (count,))
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, side, side))
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=labels[:0])
    return sample
