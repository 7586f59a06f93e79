"""What commit ba6f369 wrote means the same today: names, shapes, outputs, moving averages; see ba6f369/write.py.

Outputs and buffers are the same where no value differs by more than 1e-6 of the largest of them.
"""
import json
import lzma
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint

from ce_mm.checkpoints.convert import convert
from ce_mm.layers import CENorm
from ce_mm.ops import RELU

HERE = Path(__file__).parent / "ba6f369"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = json.loads(lzma.decompress((HERE / "names.json.xz").read_bytes()))
NETWORKS = sorted(path.name.removesuffix(".pth.xz") for path in HERE.glob("ce-*.pth.xz"))
with lzma.open(HERE / "layers.pth.xz") as file:
    LAYERS = {str(case["arguments"]): case for case in torch.load(file, weights_only=True)}


#: A config that is gone, by one whose network has the same names.
GONE = {"imagenet/ce-resnet50-elu_8xb32_in1k.py": "imagenet/ce-resnet50_8xb32_in1k.py"}


#: Configs that had CE in all stages then: what to set for a checkpoint of theirs.
ALL_STAGES = {
    "imagenet/ce-mobilenet-v2_8xb32_in1k.py": 7, "imagenet/ce-shufflenet-v2-0.5x_8xb128_in1k.py": 3,
    "imagenet/ce-shufflenet-v2-1x_8xb128_in1k.py": 3, "cifar10/ce-vgg16bn_1xb256_cifar10.py": 5,
    "coco/retinanet_ce-mobilenet-v2_fpn_2x_coco.py": 7,
}  # fmt: skip


@pytest.fixture
def unpacked(tmp_path):
    """The path of a checkpoint as it was written."""

    def unpacked(name):
        path = tmp_path / f"{name}.pth"
        path.write_bytes(lzma.decompress((HERE / f"{name}.pth.xz").read_bytes()))
        return path

    return unpacked


@pytest.fixture
def network(unpacked):
    """A network with the weights in a checkpoint, and what is under meta there."""

    def network(name):
        path = unpacked(name)
        meta = torch.load(path, weights_only=True)["meta"]
        model = MODELS.build(meta["backbone"])
        load_checkpoint(model, str(path), strict=True)
        return model, meta

    return network


def layer(name, dtype):
    case = LAYERS[name]
    ce = CENorm(**case["arguments"])
    ce.load_state_dict(case["state_dict"])
    return ce.to(dtype), case["x"].to(dtype), case


def rectified(ce, x, ceiling):
    """A ReLU of CE, cut off at the ceiling if there is one."""
    return ce(x, rectifier=RELU if ceiling is None else ceiling)


def assert_same(found, expected, tolerance=1e-6):
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


def assert_same_buffers(module, expected):
    found = dict(module.named_buffers())
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_same(found[name], value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_it_did(name, dtype):
    ce, x, case = layer(name, dtype)
    assert list(ce.state_dict()) == list(case["state_dict"])
    assert_same(ce.eval()(x), case["eval"])
    assert_same(ce.train()(x), case["train"])
    assert_same_buffers(ce, case["buffers"])


@pytest.mark.parametrize("ceiling", [None, 1.5])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", LAYERS)
def test_so_it_does_with_a_rectifier(name, mode, ceiling):
    ce, x, case = layer(name, torch.float64)
    ce.train(mode == "train")
    assert_same(rectified(ce, x, ceiling), case[mode].clamp(0, ceiling))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_what_it_did(network, name):
    model, meta = network(name)
    model, x = model.double(), meta["x"].double()
    for mode in ("eval", "train"):
        model.train(mode == "train")
        with torch.no_grad():
            assert_same(model(x)[-1][:, :64], meta[mode])
    *_, last = (module for module in model.modules() if isinstance(module, CENorm))
    assert_same_buffers(last, meta["buffers"])


@pytest.mark.parametrize("name", NETWORKS)
def test_in_float32_it_is_a_few_roundings_off(network, name):
    model, meta = network(name)
    with torch.no_grad():
        assert_same(model.eval()(meta["x"])[-1][:, :64], meta["eval"], tolerance=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_in_state_dicts_are_unchanged(name):
    if name.endswith(".py"):
        config = Config.fromfile(CONFIGS / GONE.get(name, name))
        model, scope = config.model, config.default_scope
        if name in ALL_STAGES:
            model.backbone.ce_stages = [True] * ALL_STAGES[name]
    else:
        model, scope = json.loads(name), "mmpretrain"
    with DefaultScope.overwrite_default_scope(scope):
        found = MODELS.build(model).state_dict()
    assert [(name, list(value.shape)) for name, value in found.items()] == list(map(tuple, NAMES[name].items()))


def test_the_authors_weights_are_converted_as_before_there_and_back(unpacked, tmp_path):
    before, theirs, again = unpacked("authors"), tmp_path / "theirs.pth", tmp_path / "again.pth"
    convert(before, theirs, target="authors")
    convert(theirs, again, target="classifier")
    expected, found = (torch.load(path, weights_only=True) for path in (before, again))
    configs = [Config.fromstring(each["meta"]["cfg"], ".py").to_dict() for each in (found, expected)]
    assert configs[0] == configs[1]
    assert list(found["state_dict"]) == list(expected["state_dict"])
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
