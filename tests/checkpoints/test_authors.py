"""The CE authors' layout: the converted network computes their formulas, and the way back gives the same bits."""
import json
import re

import pytest
import torch
import torch.nn.functional as F
from authors_layout import authors_shapes, authors_weights
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ce_mm.checkpoints.convert import convert
from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint

WIDTH = 8


@pytest.fixture
def released_shapes(shared):
    """Names and shapes of the file that the authors released."""
    return json.loads((shared / "reference" / "cenet_state_dict_shapes.json").read_text())["resnetv1ce50"]


@pytest.fixture
def save(tmp_path):
    def save(weights):
        path = tmp_path / "theirs.pth"
        torch.save(weights, path)
        return path

    return save


def authors_network(weights, x):
    """Their network in inference, formula by formula."""

    def norm(name, x):
        weight, bias, mean, var = (
            weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def ce(name, x):
        n, c, h, w = x.shape
        variance = x.flatten(2).var(-1)  # with Bessel's correction
        hidden = variance @ weights[f"{name}.AR.fc.0.weight"].T
        spread = (hidden.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        hidden = (hidden - hidden.mean(-1, keepdim=True)) / spread
        hidden = (hidden * weights[f"{name}.AR.fc.1.weight"] + weights[f"{name}.AR.fc.1.bias"]).relu()
        gate = (hidden @ weights[f"{name}.AR.fc.3.weight"].T).sigmoid()
        reweighted = x * (gate / weights[f"{name}.AR.running_scale"])[:, :, None, None]
        whitening = weights[f"{name}.running_wm"]
        decorrelated = torch.einsum("gij,ngjp->ngip", whitening, x.view(n, len(whitening), -1, h * w)).view(x.shape)
        share = weights[f"{name}.x_weight"].sigmoid()
        return share * decorrelated + (1 - share) * reweighted

    x = F.conv2d(x, weights["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(ce("ce1", norm("bn1", x)).relu(), 3, 2, 1)
    for name in [name.removesuffix(".conv1.weight") for name in weights if re.fullmatch(r"layer.*conv1\.weight", name)]:
        stride = 2 if name in ("layer2.0", "layer3.0", "layer4.0") else 1
        out = norm(f"{name}.bn1", F.conv2d(x, weights[f"{name}.conv1.weight"])).relu()
        out = norm(f"{name}.bn2", F.conv2d(out, weights[f"{name}.conv2.weight"], stride=stride, padding=1)).relu()
        out = norm(f"{name}.bn3", F.conv2d(out, weights[f"{name}.conv3.weight"]))
        if f"{name}.ce.x_weight" in weights:
            out = ce(f"{name}.ce", out)
        if f"{name}.downsample.0.weight" in weights:
            x = norm(f"{name}.downsample.1", F.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=stride))
        x = (out + x).relu()
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


def written_network(path, dtype):
    """The network of a written config, with the weights written beside it."""
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(Config.fromfile(path.with_suffix(".py")).model).to(dtype).eval()
    model.load_state_dict(read_checkpoint(path)["state_dict"], strict=True)
    return model


def check_outputs(weights, path, dtype, tolerance):
    picture = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=dtype)
    with torch.no_grad():
        expected, output = authors_network(weights, picture), written_network(path, dtype)(picture)
    assert expected.isfinite().all() and expected.std() > 0
    assert (output - expected).abs().max() <= tolerance * expected.abs().max()


def check_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_these_are_the_names_and_shapes_of_the_released_file(released_shapes):
    assert [(name, list(shape)) for name, shape in authors_shapes(64).items()] == list(released_shapes.items())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_the_converted_network_computes_the_authors_formulas(save, tmp_path, dtype, tolerance):
    weights = authors_weights(authors_shapes(WIDTH), dtype)
    report = convert(save(weights), tmp_path / "ours.pth", target="classifier")
    assert report.layout == "authors" and report.initialised == [] and report.left_out == []
    check_outputs(weights, tmp_path / "ours.pth", dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_so_does_that_of_the_released_names_and_the_way_back_is_exact(
    released_shapes, save, tmp_path, dtype, tolerance
):
    weights = authors_weights(released_shapes, dtype)
    source = save(dict(state_dict={f"module.{name}": value for name, value in weights.items()}, epoch=100))
    report = convert(source, tmp_path / "ours.pth", target="classifier")
    assert report.config == dict(
        type="CEResNet", depth=50, ce_cfg=dict(correction=1), ce_stem_cfg=dict(group_size=64)
    )
    check_outputs(weights, tmp_path / "ours.pth", dtype, tolerance)
    convert(tmp_path / "ours.pth", tmp_path / "back.pth", target="authors")
    check_same(torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"], weights)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back_every_tensor_has_the_same_bits(save, tmp_path, suffix):
    weights = authors_weights(authors_shapes(WIDTH))
    scales = torch.cat([value for name, value in weights.items() if name.endswith("running_scale")])
    assert (scales.reciprocal().reciprocal() != scales).any(), "else the kept originals would not matter"
    ours = tmp_path / f"ours{suffix}"
    convert(save(weights), ours, target="classifier")
    report = convert(ours, tmp_path / "back.pth", target="authors")
    assert report.files == (tmp_path / "back.pth",)
    check_same(torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"], weights)


def test_in_half_precision_the_reciprocal_of_a_scale_is_not_rounded(save, tmp_path):
    weights = authors_weights(authors_shapes(WIDTH), torch.float16)
    convert(save(weights), tmp_path / "ours.pth", target="classifier")
    found = read_checkpoint(tmp_path / "ours.pth")["state_dict"]["backbone.bn1.ir.running_inv_std_scale"]
    assert torch.equal(found, weights["ce1.AR.running_scale"].float().reciprocal())
    convert(tmp_path / "ours.pth", tmp_path / "back.pth", target="authors")
    check_same(torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"], weights)


@pytest.mark.parametrize(
    "originals",
    [
        {"x": [1.0]}, {"ce1.AR.running_scale": torch.ones(1, device="meta")}, {"ce1.running_mean": [[[1.0]]]},
        {"ce1.AR.running_scale": [2.0, 2.0]}, {"ce1.running_mean": "text"}, [],
    ],
    ids=str,
)  # fmt: skip
def test_what_was_kept_in_another_form_is_passed_over(save, tmp_path, originals):
    weights = authors_weights(authors_shapes(WIDTH))
    convert(save(weights), tmp_path / "ours.pth", target="classifier")
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    ours["meta"]["authors"] = dict(originals=originals)
    torch.save(ours, tmp_path / "own.pth")
    convert(tmp_path / "own.pth", tmp_path / "back.pth", target="authors")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert list(back) == list(weights) and torch.equal(back["ce1.running_mean"], torch.zeros(1, 8, 1))
    torch.testing.assert_close(back["ce1.AR.running_scale"], weights["ce1.AR.running_scale"])


def test_what_was_kept_as_tensors_comes_back_too(save, tmp_path):
    """As earlier files have it, with the order of the names."""
    weights = authors_weights(authors_shapes(WIDTH))
    convert(save(weights), tmp_path / "ours.pth", target="classifier")
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    names = ours["meta"]["authors"]["originals"]
    ours["meta"]["authors"] = dict(originals={name: weights[name] for name in names}, order=list(weights))
    torch.save(ours, tmp_path / "own.pth")
    convert(tmp_path / "own.pth", tmp_path / "back.pth", target="authors")
    check_same(torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"], weights)


def test_a_scale_that_was_trained_on_is_not_replaced_by_the_kept_one(save, tmp_path):
    convert(save(authors_weights(authors_shapes(WIDTH))), tmp_path / "ours.pth", target="classifier")
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    ours["state_dict"]["backbone.bn1.ir.running_inv_std_scale"].fill_(0.25)
    torch.save(ours, tmp_path / "trained.pth")
    convert(tmp_path / "trained.pth", tmp_path / "back.pth", target="authors")
    assert torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]["ce1.AR.running_scale"] == 4


def test_an_own_network_goes_to_the_authors_layout(save, tmp_path):
    weights = authors_weights(authors_shapes(WIDTH))
    convert(save(weights), tmp_path / "ours.pth", target="classifier")
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    del ours["meta"]["authors"]  # as if it had been trained here
    torch.save(ours, tmp_path / "own.pth")
    report = convert(tmp_path / "own.pth", tmp_path / "theirs_again.pth", target="authors")
    assert report.initialised == [name for name in weights if re.search(r"ce1?\.running_mean", name)]
    found = torch.load(tmp_path / "theirs_again.pth", weights_only=True)["state_dict"]
    assert list(found) == list(weights)
    torch.testing.assert_close(found["ce1.AR.running_scale"], weights["ce1.AR.running_scale"])


def edited(**changes):
    weights = authors_weights(authors_shapes(WIDTH))
    for name, value in changes.items():
        name = name.replace("__", ".")
        weights.pop(name) if value is None else weights.update({name: value})
    return weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (edited(ce1__AR__running_scale=torch.zeros(1)), "ce1.AR.running_scale must be finite and not 0 .*trained"),
        (edited(ce1__AR__running_scale=torch.tensor([1e-39])), "reciprocal is not finite.*got .*e-39"),
        (edited(ce1__AR__running_scale=None), "no value for bn1.ir.running_inv_std_scale"),
        (edited(ce1__gain=torch.zeros(1)), "ce1.gain is no name of the CE authors' layout"),
        (edited(layer1__0__bn3__weight=None), "no value for layer1.0.bn3.norm.weight"),
    ],
)
def test_what_is_not_quite_theirs_is_refused(save, tmp_path, weights, message):
    with pytest.raises(CheckpointError, match=message):
        convert(save(weights), tmp_path / "ours.pth")


def thin(**more):
    return dict(type="CEResNet", depth=50, base_channels=4, stem_channels=4, **more)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (dict(type="CEResNet", depth=18, base_channels=8, stem_channels=8), "bottleneck"),
        (dict(type="CEResNet", depth=50, base_channels=4, stem_channels=4), "correction=0"),
        (thin(style="caffe"), "style='caffe'"),
        (thin(ce_cfg=dict(correction=1, branches=("bd",))), "branches="),
        (thin(ce_cfg=dict(correction=1, branches=("ir",))), "branches="),
        (thin(ce_cfg=dict(correction=1, reduction=2)), "reduction=2"),
        (thin(ce_cfg=dict(correction=1), ce_stem_cfg=dict(correction=0)), "correction=0"),
        (thin(ce_cfg=dict(correction=1), norm_cfg=dict(type="GN", num_groups=2)), "type': 'GN'"),
        (thin(ce_cfg=dict(correction=1), norm_cfg=dict(type="BN", eps=0.1)), "'eps': 0.1"),
        (thin(ce_cfg=dict(correction=1, norm=dict(type="BN", eps=0.1))), "'eps': 0.1"),
    ],
)
def test_a_network_that_their_code_cannot_compute_is_refused(save, tmp_path, backbone, message):
    head = dict(type="LinearClsHead", num_classes=3, in_channels=64)
    config = Config(dict(model=dict(type="ImageClassifier", backbone=backbone, neck=None, head=head)))
    model = MODELS.build(config.model.backbone)
    weights = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    weights |= {"head.fc.weight": torch.zeros(3, model.feat_dim), "head.fc.bias": torch.zeros(3)}
    source = save(dict(state_dict=weights, meta=dict(cfg=config.pretty_text)))
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "theirs_again.pth", target="authors")
