"""torchvision's weights start a network here: base norms filled, and without CE's branches the same function."""
import pytest
import torch
import torchvision
from mmengine.registry import MODELS
from mmpretrain.models.backbones import ResNet
from torch import nn

from ce_mm.checkpoints.architecture import OWN
from ce_mm.checkpoints.convert import convert
from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint

# The smallest of each, and what it is here.
NETWORKS = {
    "resnet18": (lambda: torchvision.models.resnet18(), dict(type="CEResNet", depth=18)),
    "resnet50": (lambda: torchvision.models.resnet50(), dict(type="CEResNet", depth=50)),
    "mobilenet_v2": (
        lambda: torchvision.models.mobilenet_v2(width_mult=0.25),
        dict(type="CEMobileNetV2", widen_factor=0.25),
    ),
    "shufflenet_v2": (
        lambda: torchvision.models.shufflenet_v2_x0_5(),
        dict(type="CEShuffleNetV2", widen_factor=0.5),
    ),
    "vgg11_bn": (lambda: vgg_bn("A"), dict(type="CEVGG", depth=11)),
    "vgg16_bn": (lambda: vgg_bn("D"), dict(type="CEVGG", depth=16)),
}


def vgg_bn(layers):
    """torchvision's VGG with a classifier of the same names, but not of 100 million weights."""
    convolutions = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs[layers], batch_norm=True)
    return nn.ModuleDict(dict(features=convolutions, classifier=nn.Sequential(*[nn.Linear(2, 2) for _ in range(7)])))


def randomise(model):
    """Buffers that no norm starts with: two mixed up would not go unnoticed."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    model.eval()
    return model


def features(model, x):
    if hasattr(model, "features"):
        return model.features(x)
    if hasattr(model, "conv5"):
        return nn.Sequential(*list(model.children())[:-1])(x)
    return nn.Sequential(*list(model.children())[:-2])(x)


@pytest.fixture(params=NETWORKS)
def network(request, tmp_path):
    build, expected = NETWORKS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = randomise(build())
    torch.save(model.state_dict(), tmp_path / "torchvision.pth")
    return model, expected, tmp_path / "torchvision.pth"


def test_only_ce_is_initialised_and_without_its_branches_the_outputs_are_equal(network, tmp_path):
    model, expected, source = network
    report = convert(source, tmp_path / "ours.pth")
    assert (report.layout, report.config) == ("torchvision", expected)
    assert report.initialised and all(OWN.search(name) for name in report.initialised)
    assert all(name.startswith(("fc.", "classifier.")) for name in report.left_out)
    assert set(report.mapped) | set(report.left_out) == set(model.state_dict())

    backbone = MODELS.build(expected | dict(ce_cfg=dict(branches=())))
    backbone.eval()
    found = backbone.load_state_dict(read_checkpoint(tmp_path / "ours.pth")["state_dict"], strict=False)
    assert found.missing_keys == [] and sorted(found.unexpected_keys) == sorted(report.initialised)
    picture = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(backbone(picture)[-1], features(model, picture), rtol=1e-5, atol=1e-6)


def test_a_linear_classifier_comes_along(tmp_path):
    model = torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=5)
    torch.save(model.state_dict(), tmp_path / "torchvision.pth")
    report = convert(tmp_path / "torchvision.pth", tmp_path / "ours.pth", target="classifier")
    assert report.left_out == [] and report.mapped["classifier.1.weight"] == "head.fc.weight"
    weights = read_checkpoint(tmp_path / "ours.pth")["state_dict"]
    assert torch.equal(weights["head.fc.weight"], model.classifier[1].weight)


def test_weights_from_before_norms_counted_batches_are_complete(tmp_path):
    weights = torchvision.models.resnet18().state_dict()
    old = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    report = convert(tmp_path / "old.pth", tmp_path / "ours.pth")
    assert "layer4.1.bn2.num_batches_tracked" in report.initialised
    assert set(report.mapped) | set(report.left_out) == set(old)


@pytest.mark.parametrize(
    "backbone",
    [
        dict(type="ResNet", depth=18, base_channels=8, stem_channels=8),
        dict(type="ResNet", depth=50, base_channels=4, stem_channels=8, deep_stem=True, avg_down=True, in_channels=1),
        dict(type="MobileNetV2", widen_factor=0.5),
        dict(type="ShuffleNetV2", widen_factor=0.5),
        dict(type="VGG", depth=13, norm_cfg=dict(type="BN")),
    ],
    ids=lambda config: config["type"],
)
def test_plain_networks_of_mmpretrain_start_one_here_too(backbone, tmp_path):
    from mmpretrain.registry import MODELS as MMPRETRAIN

    plain = randomise(MMPRETRAIN.build(backbone))
    torch.save(dict(state_dict={f"backbone.{n}": v for n, v in plain.state_dict().items()}), tmp_path / "plain.pth")
    report = convert(tmp_path / "plain.pth", tmp_path / "ours.pth")
    expected = {name: value for name, value in backbone.items() if name != "norm_cfg"}
    assert report.config == expected | dict(type=f"CE{backbone['type']}")
    assert report.initialised and all(OWN.search(name) for name in report.initialised) and report.left_out == []
    same = MODELS.build(report.config | dict(ce_cfg=dict(branches=())))
    same.eval()
    written = read_checkpoint(tmp_path / "ours.pth")["state_dict"]
    same.load_state_dict({name: value for name, value in written.items() if name not in report.initialised})
    picture = torch.randn(2, backbone.get("in_channels", 3), 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(same(picture)[-1], plain(picture)[-1], rtol=1e-5, atol=1e-6)


def test_the_stride_of_a_caffe_style_network_is_kept_where_it_is_recorded(tmp_path):
    plain = ResNet(50, base_channels=4, stem_channels=4, style="caffe").state_dict()
    meta = dict(cfg="model = dict(backbone=dict(type='ResNet', depth=50, style='caffe', norm_eval=True))")
    torch.save(dict(state_dict={f"backbone.{n}": v for n, v in plain.items()}, meta=meta), tmp_path / "caffe.pth")
    assert convert(tmp_path / "caffe.pth", tmp_path / "ours.pth").config["style"] == "caffe"


@pytest.mark.parametrize("stranger", ["ema.running_mean", f"features.{'9' * 5000}.weight", "features.1.x.weight"])
def test_a_strange_name_is_named(stranger, tmp_path):
    torch.save({"features.0.weight": torch.zeros(2, 3, 3, 3), stranger: torch.zeros(2)}, tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match=f"{stranger[:50]}.* has no place in the network of torchvision"):
        convert(tmp_path / "vgg.pth", tmp_path / "ours.pth")


def test_another_eps_is_kept_where_it_is_recorded(tmp_path):
    plain = ResNet(18, base_channels=8, stem_channels=8).state_dict()
    norm = "norm_cfg=dict(type='SyncBN', eps=0.1, requires_grad=False)"
    meta = dict(cfg=f"model = dict(backbone=dict(type='ResNet', depth=18, {norm}))")
    torch.save(dict(state_dict={f"backbone.{n}": v for n, v in plain.items()}, meta=meta), tmp_path / "eps.pth")
    assert convert(tmp_path / "eps.pth", tmp_path / "ours.pth").config["norm_cfg"] == dict(type="BN", eps=0.1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg11", "this VGG has no batch norm"),
        ("alexnet", "no VGG has 5 convolutions"),
        ("resnext50_32x4d", r"layer1.0.conv2.weight has the shape \(128, 4, 3, 3\)"),
        ("squeezenet1_0", "has no place in the network of torchvision"),
        ("googlenet", "not the weights of a ResNet, MobileNetV2"),
    ],
)
def test_other_networks_are_refused(name, message, tmp_path):
    with torch.device("meta"):  # their names and shapes are enough
        names = torchvision.models.get_model(name).state_dict()
    small = {
        name: torch.zeros(value.shape, dtype=value.dtype) for name, value in names.items() if "classifier" not in name
    }
    torch.save(small, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "other.pth", tmp_path / "ours.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.pth"]
