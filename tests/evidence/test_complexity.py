"""Parameters and multiply-adds: hand-computed numbers, known networks, the page of the tool, and wrong input."""

import json
import math
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from torch import nn

from ce_mm import ops
from ce_mm.layers import CENorm
from tools.evidence.complexity.counting import ROIS, Complexity, build, complexity, picture_shape
from tools.evidence.complexity.table import Row, baseline, by_network, draw, in_all_stages, markdown_table, measure

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
NOTHING = Complexity(parameters=0, trainable=0, layers=0, moments=0, coefficients=0, affine=0, other=0)


def read(name: str) -> Config:
    return Config.fromfile(CONFIGS / name)


def of_imagenet(name: str) -> Row:
    path = CONFIGS / "imagenet" / f"{name}_8xb32_in1k.py"
    return measure(path, Config.fromfile(path))


def test_a_convolution_multiplies_every_output_with_its_window():
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
    expected = replace(NOTHING, parameters=8 * 3 * 9 + 8, trainable=8 * 3 * 9 + 8, layers=8 * 3 * 9 * 5 * 6)
    assert complexity(conv, (6, 10, 12)) == expected


def test_a_linear_layer_counts_its_matrix():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    network[1].bias.requires_grad_(False)
    assert complexity(network, (3, 2, 2)) == replace(NOTHING, parameters=65, trainable=60, layers=60)


def test_what_works_element_by_element_counts_nothing():
    network = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 4))
    assert complexity(network, (4, 8, 8), training=True) == replace(NOTHING, parameters=16, trainable=16)


def test_a_plain_norm_on_ce_s_operators_counts_nothing():
    class Norm(nn.Module):
        def forward(self, x):
            moments = ops.moments(x, 1, products=False)
            return ops.group_affine(x, moments.shift, None, moments.instance[1], moments.instance[0])

    assert complexity(Norm(), (4, 8, 8)) == NOTHING


def test_a_matrix_product_outside_of_layers_is_counted_apart():
    class Attention(nn.Module):
        def forward(self, x):
            return x @ x.mT

    assert complexity(Attention(), (4, 6, 10)) == replace(NOTHING, other=4 * 6 * 6 * 10)


C, G, R, T, P = 32, 16, 4, 3, 6 * 5  # channels, group, reduction, iterations, positions
GATE = 2 * C * (C // R)
BIAS = C * G  # the group's matrix times the base norm's offset
NEWTON_SCHULZ = 3 * (T - 1) * C * G * G  # three products of g×g matrices a group and step; the first step has none


@pytest.mark.parametrize(
    "branches, training, moments, coefficients, affine",
    [
        # Each element of the map: less the shift, summed, squared or multiplied with its group; then less the shift,
        # times its scale or its row of the matrix.
        (("bd", "ir"), False, C * P * (1 + 1 + 1), GATE + BIAS, C * P * (1 + G)),
        (("bd", "ir"), True, C * P * (1 + 1 + G), GATE + BIAS + NEWTON_SCHULZ, C * P * (1 + G)),
        (("bd",), False, 0, BIAS, C * P * (1 + G)),
        (("bd",), True, C * P * (1 + 1 + G), BIAS + NEWTON_SCHULZ, C * P * (1 + G)),
        (("ir",), False, C * P * (1 + 1 + 1), GATE, C * P * (1 + 1)),
        (("ir",), True, C * P * (1 + 1 + 1), GATE, C * P * (1 + 1)),
        ((), False, 0, 0, 0),
    ],
)
def test_ce_counts_its_two_passes_and_the_products_between(branches, training, moments, coefficients, affine):
    layer = CENorm(C, group_size=G, reduction=R, iterations=T, branches=branches)
    counts = complexity(layer, (C, 6, 5), training)
    gate = GATE + 2 * (C // R) if "ir" in branches else 0
    assert counts.parameters == 2 * C + gate + (len(branches) == 2)
    assert (counts.moments, counts.coefficients, counts.affine) == (moments, coefficients, affine)
    assert counts.ce == counts.total == moments + coefficients + affine


def test_ce_with_a_pool_multiplies_on_the_pooled_map():
    layer = CENorm(C, group_size=G, max_pool=True)
    assert complexity(layer, (C, 6, 8), training=True).moments == C * 48 * 3 + C * 12 * (2 + G)


def test_synchronised_norms_count_as_they_are():
    network = nn.Sequential(nn.SyncBatchNorm(C), CENorm(C, norm=dict(type="SyncBN"), group_size=G))
    expected = complexity(nn.Sequential(nn.BatchNorm2d(C), CENorm(C, group_size=G)), (C, 6, 5), training=True)
    assert complexity(network, (C, 6, 5), training=True) == expected


def test_the_network_is_left_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 16, 1), CENorm(16)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    complexity(network, (3, 8, 8))
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_resnet50_has_25_6_million_parameters_and_4_1_g_and_ce_resnet50_29_3_million_as_in_the_paper():
    plain, se, ce = (of_imagenet(name) for name in ("resnet50", "seresnet50", "ce-resnet50"))
    assert (plain.kind, se.kind, ce.kind) == ("baseline", "SE", "CE")
    assert plain.network == se.network == ce.network == "ResNet-50, 224×224"
    assert round(plain.inference.parameters / 1e6, 1) == 25.6
    assert round(plain.inference.total / 1e9, 1) == 4.1
    assert round(ce.inference.parameters / 1e6, 1) == 29.3
    assert plain.inference.parameters < se.inference.parameters < ce.inference.parameters
    assert plain.inference.total < se.inference.total < ce.inference.total < ce.training.total
    assert ce.without_ce == plain.inference == plain.training


def test_ce_mobilenet_v2_is_shown_with_ce_in_all_stages_too():
    paths = [CONFIGS / f"imagenet/{name}_8xb32_in1k.py" for name in ("mobilenet-v2", "ce-mobilenet-v2")]
    configs = {path: Config.fromfile(path) for path in paths}
    rows = [measure(path, config) for path, config in configs.items()]

    (all_stages,) = in_all_stages(rows, configs)

    assert all_stages.name == "ce-mobilenet-v2_8xb32_in1k, in all stages"
    assert [round(row.inference.parameters / 1e6, 1) for row in (*rows, all_stages)] == [3.5, 4.2, 5.8]
    assert by_network([all_stages, *rows])[all_stages.network] == [*rows, all_stages]
    assert in_all_stages(rows[:1], configs) == []


def test_a_detector_counts_its_heads_for_a_fixed_number_of_rois():
    config = read("coco/mask-rcnn_ce-r50_fpn_2x_coco.py")
    detector = build(config)

    class BeforeRois(nn.Module):
        def __init__(self):
            super().__init__()
            self.detector = detector

        def forward(self, x):
            return self.detector.rpn_head(self.detector.extract_feat(x))

    box = 256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * (81 + 80 * 4)
    mask = 14 * 14 * (4 * 9 * 256 * 256 + 4 * 256 * 256) + 28 * 28 * 256 * 80
    before, whole = complexity(BeforeRois(), (3, 64, 96)), complexity(config, (3, 64, 96))
    assert whole.layers - before.layers == ROIS * box + 100 * mask
    assert whole.ce == before.ce > 0
    assert whole.trainable < whole.parameters  # of its frozen stages
    assert complexity(config, (3, 64, 96), training=True) == whole  # and frozen statistics


def test_a_one_stage_detector_is_counted_whole():
    config = get_config("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py")
    detector = build(config)
    trunk = nn.Sequential(detector.backbone, detector.neck)
    positions = sum(math.ceil(64 / 2**level) * math.ceil(96 / 2**level) for level in range(3, 8))
    head = positions * 9 * 256 * (8 * 256 + 9 * 80 + 9 * 4)
    assert complexity(detector, (3, 64, 96)).layers == complexity(trunk, (3, 64, 96)).layers + head


@pytest.mark.parametrize(
    "name, shape",
    [
        ("imagenet/ce-resnet50_8xb32_in1k.py", (3, 224, 224)),
        ("coco/mask-rcnn_ce-r50_fpn_2x_coco.py", (3, 800, 1344)),  # 1333 columns, padded to a multiple of 32
        ("coco/mask-rcnn_ce-r18_fpn_8pictures_coco.py", (3, 384, 384)),
        ("cifar10/ce-vgg16bn_1xb256_cifar10.py", (3, 32, 32)),
    ],
)
def test_a_config_says_how_large_its_pictures_are(name, shape):
    assert picture_shape(read(name)) == shape


def test_a_config_that_does_not_say_it_is_named():
    with pytest.raises(ValueError, match=r"ce-resnet18_shapes\.py: .*has no Resize or CenterCrop.*give the shape"):
        picture_shape(read("shapes/ce-resnet18_shapes.py"))


@pytest.mark.parametrize("shape", [(3, 0, 8), (3, 8, -1), (8, 8)])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(ValueError, match=r"the shape of a picture is C, H, W, all at least 1, not \("):
        complexity(nn.Conv2d(3, 8, 1), shape)


def test_a_picture_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"Conv2d does not run on a picture of 4×8×8: RuntimeError: .*channel"):
        complexity(nn.Conv2d(3, 8, 1), (4, 8, 8))


def test_a_model_that_cannot_be_built_is_named():
    config = read("imagenet/ce-resnet18_8xb32_in1k.py")
    config.model.backbone.type = "NoNet"
    with pytest.raises(ValueError, match=r"the model of .*ce-resnet18_8xb32_in1k\.py cannot be built: .*NoNet"):
        complexity(config, (3, 64, 64))


def row(config: str, kind: str = "baseline", parameters: int = 10**6, layers: int = 10**9, **others) -> Row:
    counts = replace(NOTHING, parameters=parameters, layers=layers)
    values = dict(network="Net", batch_norm=True, shape=(3, 8, 8), inference=counts, training=counts, without_ce=counts)
    return Row(config=f"configs/{config}.py", kind=kind, **(values | others))


def test_rows_stand_by_network_and_kind_and_the_first_baseline_with_bn_is_the_reference():
    rows = [row("ce-net", "CE"), row("other", network="Other"), row("net-gn", batch_norm=False), row("net", layers=7)]
    rows.append(row("se-net", "SE"))
    groups = by_network(rows)
    assert [Path(entry.config).stem for entry in groups["Net"]] == ["net", "net-gn", "se-net", "ce-net"]
    assert list(groups) == ["Net", "Other"]
    assert baseline(groups["Net"]).layers == 7


def test_without_a_baseline_the_reference_is_the_network_without_ce():
    without = replace(NOTHING, parameters=8 * 10**5, layers=5 * 10**8)
    lines = markdown_table([row("ce-net", "CE", without_ce=without)]).splitlines()
    assert lines[2] == "| (without CE) | baseline | 0.8000 | 1.000 | 0.5000 | 1.000 | – | – | – | – |"
    assert lines[3] == "| ce-net | CE | 1.000 | 1.250 | 1.000 | 2.000 | – | – | – | 1.000 |"


def test_numbers_have_four_figures_and_no_exponent():
    lines = [markdown_table([row("net", layers=layers)]).splitlines()[2] for layers in (40_481_234, 12_345_678_901_234)]
    assert [line.split(" | ")[4] for line in lines] == ["0.04048", "12346"]


def test_the_picture_has_one_bar_for_configs_of_a_network_that_cost_the_same(tmp_path):
    def picture(*names_and_layers):
        draw([row("net"), *(row(name, "CE", layers=layers) for name, layers in names_and_layers)], tmp_path / "a.png")
        return (tmp_path / "a.png").read_bytes()

    one = picture(("ce-net", 2 * 10**9))
    assert picture(("ce-net", 2 * 10**9), ("ce-net-elu", 2 * 10**9)) == one
    assert picture(("ce-net", 2 * 10**9), ("ce-net-bd", 3 * 10**9)) != one


def test_a_picture_without_bars_can_be_drawn(tmp_path):
    draw([row("net")], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def run_tool(monkeypatch):
    def run(*args: object) -> None:
        monkeypatch.setattr("sys.argv", ["complexity", *map(str, args)])
        runpy.run_module("tools.evidence.complexity", run_name="__main__")

    return run


@pytest.fixture
def configs(tmp_path) -> Path:
    """A folder with a plain network of 18 layers and one with CE."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, backbone in (("net", "ResNet"), ("ce-net", "CEResNet")):
        Config(
            dict(
                custom_imports=dict(imports=["ce_mm"]),
                default_scope="mmpretrain",
                model=dict(
                    type="ImageClassifier",
                    backbone=dict(type=backbone, depth=18),
                    neck=dict(type="GlobalAveragePooling"),
                    head=dict(type="LinearClsHead", num_classes=10, in_channels=512),
                ),
            )
        ).dump(folder / f"{name}.py")
    return folder


def test_the_tool_prints_the_table_and_writes_numbers_page_and_picture(tmp_path, configs, run_tool, capsys):
    out = tmp_path / "new" / "out"
    run_tool(configs, "--shape", 32, 48, "--out", out)
    assert {path.name for path in out.iterdir()} == {"complexity.json", "complexity.md", "complexity.png"}

    numbers = json.loads((out / "complexity.json").read_text())
    assert numbers["command"].startswith("python -m tools.evidence.complexity ")
    assert numbers["command"].endswith(f"--shape 32 48 --out {out}")
    ce, plain, all_stages = numbers["rows"]
    expected = complexity(Config.fromfile(configs / "ce-net.py"), (3, 32, 48), training=True)
    assert ce["training"] == vars(expected) | dict(total=expected.total)
    assert (ce["config"], ce["kind"], ce["shape"]) == (str(configs / "ce-net.py"), "CE", [3, 32, 48])
    assert plain["inference"] == ce["without_ce"] == plain["training"]
    assert all_stages["inference"]["parameters"] > ce["inference"]["parameters"]

    page, printed = (out / "complexity.md").read_text(), capsys.readouterr().out
    table = printed[printed.index("|") :].rstrip()
    assert printed.startswith("ResNet-18, 32×48\n") and f"## ResNet-18, 32×48\n\n{table}\n" in page
    shown = [line.split(" | ")[:2] for line in table.splitlines()[2:]]
    assert shown == [["| net", "baseline"], ["| ce-net", "CE"], ["| ce-net, in all stages", "CE"]]
    assert numbers["command"] in page
    assert (out / "complexity.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.py"], r"error: config file missing\.py: there is no such file"),
        (["{configs}/net.py", "--shape", 0, 8], r"error: .*net\.py: the shape .*all at least 1, not \(3, 0, 8\)"),
        (["{configs}/net.py", "--shape", 8, 8, "--out", "{configs}/net.py"], r"error: .*net\.py: expected a folder"),
        (["{configs}/net.py"], r"error: .*net\.py: .*has no Resize or CenterCrop"),
        (["{configs}/.."], r"error: .*there is no config file \(\*\.py\) in this folder"),
    ],
)
def test_bad_input_ends_the_tool_with_one_line_and_status_2(configs, run_tool, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        run_tool(*(str(argument).format(configs=configs) for argument in arguments))
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert re.match(message, line)


def test_a_config_is_not_replaced_by_the_numbers(configs, run_tool, capsys):
    config = configs / "complexity.json"
    Config.fromfile(configs / "net.py").dump(config)
    before = config.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        run_tool(config, "--shape", 8, 8, "--out", configs)
    assert "complexity.json, from which it would be made" in capsys.readouterr().err
    assert config.read_bytes() == before
