"""Every config in configs/ builds, trains and predicts, follows the schedule that the paper describes, and takes AMP.

``TABLE`` is the paper's description, written down by hand; learning rates are read from an optimizer that the config's
own schedulers drive through a whole training.
"""
import json
import re
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ce_mm.layers import CENorm, SwitchableNorm

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.glob("*/*.py") if p.parent.name != "_base_")


@dataclass(frozen=True)
class Schedule:
    """What the paper says of a training; what it leaves open, as the config chose it."""

    epochs: int
    batch: tuple[int, int]  # GPUs, pictures on each
    iterations: int  # of an epoch
    optimizer: dict
    rates: dict  # epoch, or (epoch, iteration) -> learning rate


def sgd(lr, weight_decay):
    return dict(type="SGD", lr=lr, momentum=0.9, weight_decay=weight_decay)


def adamw(lr):
    return dict(type="AdamW", lr=lr, weight_decay=0.05)


def coco(lr):
    warmup = {(0, 0): 0.001 * lr, (0, 499): lr}
    steps = {1: lr, 15: lr, 16: 0.1 * lr, 21: 0.1 * lr, 22: 0.01 * lr, 23: 0.01 * lr}
    return Schedule(24, (8, 2), 7330, sgd(lr, 1e-4), warmup | steps)


# What the paper leaves open, and the configs chose: warm-ups, momentum (0.9 is the authors' own for ResNet), VGG's
# weight decay, the power of the polynomial decay.
TABLE = {
    "imagenet/*resnet*_8xb32_in1k.py": Schedule(
        100, (8, 32), 5005, sgd(0.1, 1e-4),
        {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 1e-3, 89: 1e-3, 90: 1e-4, 99: 1e-4},
    ),
    "imagenet/*mobilenet-v2_8xb32_in1k.py": Schedule(
        150, (8, 32), 5005, sgd(0.05, 4e-5), {0: 0.05, 50: 0.0375, 75: 0.025, 100: 0.0125, 149: 5.483e-6}
    ),
    "imagenet/*shufflenet-v2-*x_8xb128_in1k.py": Schedule(
        240, (8, 128), 1252, sgd(0.5, 4e-5),
        {0: 0.05, (3, 1242): 0.05, (3, 1243): 0.5, (121, 1248): 0.25, (239, 1251): 0.0},
    ),
    "cifar10/*vgg16bn*_1xb256_cifar10.py": Schedule(
        160, (1, 256), 196, sgd(0.1, 5e-4), {0: 0.1, 59: 0.1, 60: 0.01, 119: 0.01, 120: 1e-3, 159: 1e-3}
    ),
    "coco/*-rcnn_*_2x_coco.py": coco(0.02),
    "coco/retinanet_*_2x_coco.py": coco(0.01),
    # Not of the paper: the demo, and the eight pictures.
    "coco/*_8pictures_coco.py": Schedule(
        6, (1, 2), 80, adamw(1e-3), {0: 5e-5, (0, 29): 1e-3 * 0.9911, 3: 5e-4, (5, 79): 0.0}
    ),
    "shapes/*resnet18_shapes.py": Schedule(6, (1, 64), 71, adamw(2e-3), {0: 2e-3, (3, 0): 1e-3, (5, 70): 0.0}),
    "shapes/mask-rcnn_*r18_fpn_shapes.py": Schedule(
        3, (1, 4), 200, adamw(2e-3), {0: 1e-4, (0, 49): 2e-3 * 0.984, (1, 100): 1e-3, (2, 199): 0.0}
    ),
}  # fmt: skip


@cache
def _read(name):
    return Config.fromfile(CONFIGS / name)


def read(name):
    """The config, a copy that may be changed."""
    return deepcopy(_read(name))


def described(name):
    (schedule,) = (schedule for pattern, schedule in TABLE.items() if fnmatch(name, pattern))
    return schedule


def is_detector(cfg):
    return cfg.default_scope == "mmdet"


def build(cfg):
    """The model as mmengine's Runner builds it."""
    settings = cfg.model
    if "data_preprocessor" in cfg:
        settings.setdefault("data_preprocessor", cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(settings)


def small(cfg):
    """What makes a step on a CPU cheap and possible: random weights, few proposals, and a low learning rate, as a step
    at the config's own on two pictures of noise may leave weights with which inference overflows.
    """
    if (cfg.model.backbone.get("init_cfg") or {}).get("type") == "Pretrained":
        cfg.model.backbone.init_cfg = None
    if "roi_head" in cfg.model:
        cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = 20
    cfg.optim_wrapper.optimizer.lr = 1e-4
    return cfg


def batch(cfg):
    """Two small random pictures with what there is to learn in them, as a data loader gives them."""
    if is_detector(cfg):
        from mmdet.testing import demo_mm_inputs  # wants mmcv's operators, for which ce_mm stands in

        # RetinaNet's coarsest convolution would get a map of one position: on a CPU with AVX-512 PyTorch 2.14 takes
        # parts of its weights' gradient in bfloat16 from memory that was never written.
        side = 128 if cfg.model.type == "RetinaNet" else 64
        size = (3, side, side)
        return demo_mm_inputs(2, [size, size], num_items=[1, 2], num_classes=6, with_mask=True)
    size = 32 if cfg.train_dataloader.dataset.type == "CIFAR10" else 64
    pictures = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    return dict(inputs=list(pictures), data_samples=[DataSample().set_gt_label(label) for label in (1, 4)])


def train_a_step(cfg, model):
    """Losses of one step; the gradients stay."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model.init_weights()
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        optimizer.zero_grad = lambda **_: None
        return model.train().train_step(batch(cfg), optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_trains_a_step_and_predicts(name):
    torch.manual_seed(0)
    cfg = small(read(name))
    model = build(cfg)
    # DistributedDataParallel looks now, before train(), and would wait for those without a gradient.
    learnt = [n for n, p in model.named_parameters() if p.requires_grad]

    losses = train_a_step(cfg, model)

    assert all(loss.isfinite().all() for loss in losses.values())
    assert [n for n, p in model.named_parameters() if p.grad is not None] == learnt
    assert all(p.isfinite().all() for p in model.parameters())

    with torch.no_grad():
        results = model.eval().test_step(batch(cfg))

    assert len(results) == 2
    for result in results:
        if is_detector(cfg):
            found = result.pred_instances
            assert found.bboxes.isfinite().all() and len(found.scores) == len(found.bboxes)
            assert ("masks" in found) == (cfg.model.type == "MaskRCNN")
        else:
            assert result.pred_score.shape == (cfg.model.head.num_classes,)
            assert result.pred_score.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_its_schedule_is_the_described_one(name):
    cfg, expected = read(name), described(name)
    gpus, pictures = expected.batch

    schedulers, lr = json.dumps(cfg.param_scheduler), expected.optimizer["lr"]
    rates = learning_rates(schedulers, lr, expected.epochs, expected.iterations, tuple(expected.rates))

    optimizer = {key: value for key, value in cfg.optim_wrapper.optimizer.items() if key != "_scope_"}
    assert optimizer == expected.optimizer
    assert cfg.train_cfg.max_epochs == expected.epochs
    assert cfg.train_dataloader.batch_size == pictures
    assert cfg.auto_scale_lr.base_batch_size == gpus * pictures
    assert rates == pytest.approx(expected.rates, rel=1e-3, abs=2e-7)


@cache  # many configs share a schedule, and some have hundreds of thousands of iterations
def learning_rates(schedulers, lr, epochs, iterations, places):
    """Learning rates at ``places``, where training has just come there.

    Args:
        schedulers: ``param_scheduler`` of a config, as JSON.
        lr: of the optimizer.
        epochs, iterations: how many, and how many in each.
        places: epochs, or pairs of an epoch and an iteration in it.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    settings = json.loads(schedulers)
    built = []
    for setting in settings if isinstance(settings, list) else [settings]:
        end = epochs if setting.get("by_epoch", True) else epochs * iterations  # the Runner's defaults
        default = dict(optimizer=optimizer, epoch_length=iterations)
        built.append(PARAM_SCHEDULERS.build(dict(end=end) | setting, default_args=default))
    optimizer.step()  # schedulers warn when they step before their optimizer
    by_epoch, by_iteration = ([s for s in built if s.by_epoch == kind] for kind in (True, False))
    places = {place if isinstance(place, tuple) else (place, 0): place for place in places}
    rates = {}
    for epoch in range(epochs):
        for iteration in range(iterations if by_iteration else 1):
            if (epoch, iteration) in places:
                rates[places[epoch, iteration]] = optimizer.param_groups[0]["lr"]
            for scheduler in by_iteration:
                scheduler.step()
        for scheduler in by_epoch:
            scheduler.step()
    return rates


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_a_comment_and_has_the_imports_and_hooks_of_all(name):
    """Also without CE: a comparison of speed would charge them to CE."""
    cfg, base = read(name), read("_base_/ce.py")

    assert (CONFIGS / name).read_text().startswith("# ")
    assert set(base.custom_imports.imports) <= set(cfg.custom_imports.imports)
    assert cfg.custom_hooks == base.custom_hooks


TYPE, BRANCHES = "model.backbone.type", "model.backbone.ce_cfg.branches"
STAGES = "model.backbone.ce_stages"
ZERO_INIT, START = "model.backbone.zero_init_residual", "model.backbone.init_cfg.checkpoint"
#: Folder and network of a config -> with what it is compared, and all that it differs in.
PAIRS = {
    **{
        f"imagenet/ce-resnet{which}": (f"imagenet/resnet{which}", {TYPE, ZERO_INIT})
        for which in ("18", "34", "50", "101", "152", "50-gn", "50-in", "50-ln", "50-sn")
    },
    "imagenet/ce-resnet18-elu": ("imagenet/resnet18-elu", {BRANCHES, ZERO_INIT}),
    "imagenet/resnet50-nonzero-init": ("imagenet/resnet50", {ZERO_INIT}),
    "imagenet/ce-resnet50-stem-pool": ("imagenet/ce-resnet50", {"model.backbone.ce_stem_cfg.max_pool"}),
    "imagenet/ce-resnet50-bd": ("imagenet/ce-resnet50", {BRANCHES}),
    "imagenet/ce-resnet50-ir": ("imagenet/ce-resnet50", {BRANCHES}),
    "imagenet/seresnet50": ("imagenet/resnet50", {TYPE}),
    "imagenet/seresnet101": ("imagenet/resnet101", {TYPE}),
    "imagenet/ce-mobilenet-v2": ("imagenet/mobilenet-v2", {TYPE, STAGES}),
    "imagenet/ce-shufflenet-v2-0.5x": ("imagenet/shufflenet-v2-0.5x", {TYPE, STAGES}),
    "imagenet/ce-shufflenet-v2-1x": ("imagenet/shufflenet-v2-1x", {TYPE, STAGES}),
    "cifar10/vgg16bn-elu": ("cifar10/vgg16bn", {"model.backbone.act_cfg.type"}),
    "cifar10/vgg16bn-lrelu": (
        "cifar10/vgg16bn", {"model.backbone.act_cfg.type", "model.backbone.act_cfg.negative_slope"}
    ),
    "cifar10/ce-vgg16bn": ("cifar10/vgg16bn", {TYPE, STAGES}),
    "coco/mask-rcnn_ce-r50": ("coco/mask-rcnn_r50", {TYPE, START}),
    "coco/mask-rcnn_ce-r101": ("coco/mask-rcnn_r101", {TYPE, START}),
    "coco/mask-rcnn_se-r50": ("coco/mask-rcnn_r50", {TYPE, START, "custom_imports.imports"}),
    "coco/mask-rcnn_se-r101": ("coco/mask-rcnn_r101", {TYPE, START, "custom_imports.imports"}),
    "shapes/resnet18": ("shapes/ce-resnet18", {TYPE, ZERO_INIT}),
    "shapes/mask-rcnn_r18": ("shapes/mask-rcnn_ce-r18", {TYPE, START}),
}  # fmt: skip


@pytest.mark.parametrize("place", PAIRS)
def test_it_differs_from_what_it_is_compared_with_in_what_is_stated_and_nothing_else(place):
    other, stated = PAIRS[place]
    ours, theirs = (flat(read(file_of(each)).to_dict()) for each in (place, other))

    assert {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)} == stated


def file_of(place):
    """The file of a config by its folder and network; behind them stand batch size and data set."""
    (name,) = (name for name in NAMES if re.fullmatch(rf"{re.escape(place)}_\w+\.py", name))
    return name


def flat(tree, prefix=""):
    """The leaves of a tree of dicts by their paths, ``model.backbone.depth``; lists are leaves."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {path: leaf for key, child in tree.items() for path, leaf in flat(child, f"{prefix}{key}.").items()}


@pytest.mark.parametrize("name", ["resnet50", "resnet50-nonzero-init", "ce-resnet50", "ce-resnet50-gn"])
def test_the_last_gammas_start_at_zero_in_resnet50_alone(name):
    model = build(read(f"imagenet/{name}_8xb32_in1k.py"))
    model.init_weights()

    weights = [model.backbone.get_submodule(f"layer{stage}.0").norm3.weight for stage in (1, 2, 3, 4)]

    assert all(weight.eq(0 if name == "resnet50" else 1).all() for weight in weights)


def test_imagenet_labels_are_smoothed_and_cifar10_s_are_not():
    losses = {"imagenet": ("LabelSmoothLoss", 0.1), "cifar10": ("CrossEntropyLoss", None)}
    for name in NAMES:
        folder = name.split("/")[0]
        if folder in losses:
            loss = read(name).model.head.loss
            assert (loss.type, loss.get("label_smooth_val")) == losses[folder], name


@pytest.mark.parametrize(("name", "pools"), [("ce-resnet50", []), ("ce-resnet50-stem-pool", ["backbone.bn1"])])
def test_ce_stands_at_the_stem_and_one_config_pools_there(name, pools):
    model = build(read(f"imagenet/{name}_8xb32_in1k.py"))
    layers = {path: module for path, module in model.named_modules() if isinstance(module, CENorm)}

    assert "backbone.bn1" in layers
    assert [path for path, ce in layers.items() if ce.bd.max_pool] == pools


# Weights of a network with CE in all stages, in the configs' stages, and without CE, in M.
PARAMETERS = {
    "imagenet/ce-mobilenet-v2": (5.765, 4.215, 3.505),
    "imagenet/ce-shufflenet-v2-0.5x": (1.396, 1.377, 1.367),
    "imagenet/ce-shufflenet-v2-1x": (2.448, 2.340, 2.279),
    "cifar10/ce-vgg16bn": (15.636, 15.242, 14.728),
}


@pytest.mark.parametrize("place", PARAMETERS)
def test_the_final_stages_have_no_ce(place):
    """Those whose maps are the smallest, as a ResNet's fourth."""
    cfg = read(file_of(place))
    stages, counts = list(cfg.model.backbone.ce_stages), []
    for chosen in ([True] * len(stages), stages, [False] * len(stages)):
        cfg.model.backbone.ce_stages = chosen
        counts.append(sum(p.numel() for p in build(deepcopy(cfg)).parameters()) / 1e6)

    assert not stages[-1] and stages == sorted(stages, reverse=True)
    assert counts == pytest.approx(PARAMETERS[place], abs=5e-4)


# The paper's table 7, and SN of its figure 7(b).
NORMS = {
    "resnet50-gn": nn.GroupNorm, "resnet50-in": nn.InstanceNorm2d, "resnet50-ln": nn.GroupNorm,
    "resnet50-sn": SwitchableNorm, "resnet18": nn.BatchNorm2d, "resnet18-elu": nn.BatchNorm2d,
}  # fmt: skip


@pytest.mark.parametrize("ce", ["", "ce-"])
@pytest.mark.parametrize("row", NORMS)
def test_a_row_of_table_7_has_its_norm_and_rectifier_at_all_places(row, ce):
    modules = list(build(read(f"imagenet/{ce}{row}_8xb32_in1k.py")).modules())
    norms = [m for m in modules if isinstance(m, (_NormBase, nn.GroupNorm, SwitchableNorm))]
    rectifiers = [type(m) for m in modules if isinstance(m, (nn.ReLU, nn.ELU))]
    norm_places, rectifier_places, ce_places = (20, 9, 7) if "resnet18" in row else (53, 17, 14)

    assert [type(norm) for norm in norms] == [NORMS[row]] * norm_places
    assert all(norm.weight is not None for norm in norms)
    if NORMS[row] is nn.GroupNorm:
        assert {norm.num_groups for norm in norms} == {{"resnet50-gn": 32, "resnet50-ln": 1}[row]}
    assert rectifiers == [nn.ELU if row == "resnet18-elu" else nn.ReLU] * rectifier_places
    assert sum(isinstance(m, CENorm) and m.branches == ("bd", "ir") for m in modules) == (ce_places if ce else 0)


@pytest.mark.parametrize(("row", "rectifier"), [("", nn.ReLU), ("-elu", nn.ELU), ("-lrelu", nn.LeakyReLU)])
def test_vgg_has_its_rectifier_behind_all_thirteen_norms(row, rectifier):
    modules = list(build(read(f"cifar10/vgg16bn{row}_1xb256_cifar10.py")).modules())

    assert sum(isinstance(m, nn.BatchNorm2d) for m in modules) == 13
    assert [type(m) for m in modules if isinstance(m, (nn.ReLU, nn.ELU, nn.LeakyReLU))] == [rectifier] * 13


@pytest.mark.parametrize(
    ("detector", "classifier", "folder"),
    [
        ("coco/mask-rcnn_r50", "imagenet/resnet50", "resnet50_8xb32_in1k"),
        ("coco/mask-rcnn_se-r50", "imagenet/seresnet50", "seresnet50_8xb32_in1k"),
        ("coco/mask-rcnn_ce-r50", "imagenet/ce-resnet50", "ce-resnet50_8xb32_in1k"),
        ("coco/mask-rcnn_ce-r101", "imagenet/ce-resnet101", "ce-resnet101_8xb32_in1k"),
        ("coco/faster-rcnn_ce-r50", "imagenet/ce-resnet50", "ce-resnet50_8xb32_in1k"),
        ("coco/retinanet_ce-mobilenet-v2", "imagenet/ce-mobilenet-v2", "ce-mobilenet-v2_8xb32_in1k"),
        ("shapes/mask-rcnn_ce-r18", "shapes/ce-resnet18", "shapes/pretrain"),
        ("shapes/mask-rcnn_r18", "shapes/resnet18", "shapes-bn/pretrain"),
        ("coco/mask-rcnn_ce-r18", "shapes/ce-resnet18", "shapes/pretrain"),
    ],
)
def test_a_detector_starts_from_the_last_checkpoint_of_its_classifier_as_it_is(detector, classifier, folder, tmp_path):
    cfg, trained = read(file_of(detector)), read(file_of(classifier))
    model = build(trained)
    file = f"work_dirs/{folder}/epoch_{trained.train_cfg.max_epochs}.pth"
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "weights.pth")
    assert cfg.model.backbone.init_cfg.checkpoint == file
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / "weights.pth")

    backbone = build(cfg).backbone
    backbone.init_weights()

    expected = model.backbone.state_dict()
    assert backbone.state_dict().keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        *(f"imagenet/ce-{row}_8xb32_in1k.py" for row in NORMS),
        "imagenet/seresnet50_8xb32_in1k.py",
        "imagenet/ce-mobilenet-v2_8xb32_in1k.py",
        "imagenet/ce-shufflenet-v2-0.5x_8xb128_in1k.py",
        "cifar10/ce-vgg16bn_1xb256_cifar10.py",
        "coco/mask-rcnn_r50_fpn_ce-neck-mask_2x_coco.py",
        "coco/retinanet_ce-mobilenet-v2_fpn_2x_coco.py",
        "shapes/mask-rcnn_ce-r18_fpn_shapes.py",
    ],
)
def test_it_trains_a_step_under_amp(name, monkeypatch):
    """In bfloat16, on the CPU: float16 needs a GPU."""
    torch.manual_seed(0)
    # mmengine's wrapper asks for a GPU; its autocast works on a CPU, in bfloat16, for which no loss is scaled.
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    cfg = small(read(name))
    cfg.optim_wrapper.update(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=dict(enabled=False))
    model = build(cfg)
    types = set()
    first = next(m for m in model.backbone.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, output: types.add(output.dtype))

    losses = train_a_step(cfg, model)

    assert types == {torch.bfloat16}
    assert all(loss.isfinite().all() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
