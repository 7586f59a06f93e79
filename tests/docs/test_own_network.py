"""The code of the page "CE in your own network", run from top to bottom, and what it builds."""
import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import torchvision
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.backbones import RegNet

from ce_mm.backbones import CEVGG, CEMobileNetV2, CEResNet, CEShuffleNetV2
from ce_mm.layers import CENorm, equalize

PAGE = Path(__file__).resolve().parents[2] / "docs/own_network.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page():
    """The names that the page's python blocks define, and what they print as ``printed``."""
    names, printed = {}, io.StringIO()
    with redirect_stdout(printed):
        for block in re.finditer(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
            above = TEXT.count("\n", 0, block.start(1))  # so that an error names the line of the page
            exec(compile("\n" * above + block[1], str(PAGE), "exec"), names)
    return dict(names, printed=printed.getvalue())


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, CENorm)}


def test_the_report_that_the_page_shows_is_printed(page):
    (shown,) = re.findall(r"^```text\n(.*?)\.\.\.\n```$", TEXT, re.MULTILINE | re.DOTALL)
    assert page["printed"].startswith(shown)
    assert len(page["printed"].splitlines()) == 14


def test_what_is_said_to_freeze_ce_freezes_it(page):
    for ce in page["report"].layers.values():
        assert not any(p.requires_grad for p in ce.parameters())
        assert not any(module.training for module in ce.modules())


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("resnet18", lambda: CEResNet(18)),
        ("resnet50", lambda: CEResNet(50)),
        ("mobilenet_v2", CEMobileNetV2),
        ("shufflenet_v2_x1_0", CEShuffleNetV2),
        ("vgg16_bn", lambda: CEVGG(16)),
    ],
)
def test_the_places_in_torchvision_s_networks_are_those_of_the_package_s(page, name, ours):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    equalize(model, page["PLACES"][name])
    theirs, expected = layers(model).values(), layers(ours()).values()
    assert [ce.num_features for ce in theirs] == [ce.num_features for ce in expected]


def test_the_block_of_plain_pytorch_runs(page):
    block = page["Block"](32)
    assert list(layers(block)) == ["bn2"]
    assert (block(torch.randn(2, 32, 8, 8)) >= 0).all()


def test_a_convolution_with_norm_cfg_has_ce_and_runs(page):
    assert list(layers(page["conv"])) == ["bn"]
    assert page["conv"](torch.randn(2, 64, 8, 8)).shape == (2, 128, 6, 6)


def test_every_block_but_the_last_stage_s_has_ce_after_its_last_convolution(page):
    stages = [1, 2, 7]  # blocks of RegNetX-400MF, whose fourth stage has 12
    expected = [f"layer{i + 1}.{j}.bn3" for i, n in enumerate(stages) for j in range(n)]
    assert list(layers(page["CERegNet"]("regnetx_400mf"))) == expected


def test_the_regnet_can_do_what_a_detector_asks_of_it(page):
    kwargs = dict(arch="regnetx_400mf", out_indices=(0, 1, 2, 3))
    model = page["CERegNet"](frozen_stages=1, norm_eval=True, **kwargs)
    assert not any(p.requires_grad for p in model.layer1.parameters())
    model.init_weights()
    model.train()
    x = torch.randn(2, 3, 64, 64)
    maps = model(x)
    assert [y.shape for y in maps] == [y.shape for y in RegNet(**kwargs)(x)]
    maps[-1].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert not any(ce.norm.training for ce in layers(model).values())


def test_the_config_of_a_detector_starts_from_ce_and_freezes_what_mmdet_freezes(tmp_path):
    (block,) = re.findall(r"^```python\n(_base_ = .*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "config.py").write_text(block, encoding="utf-8")
    settings = Config.fromfile(tmp_path / "config.py").model.backbone
    assert settings.init_cfg.prefix == "backbone."
    with DefaultScope.overwrite_default_scope("mmdet"):
        backbone = MODELS.build(settings | dict(init_cfg=None)).train()
    assert not any(p.requires_grad for p in backbone.layer1.parameters())
    assert not any(ce.norm.training for ce in layers(backbone).values())


def test_the_config_builds_a_classifier(page):
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        classifier = MODELS.build(page["model"])
    assert len(layers(classifier)) == 1 + 2 + 7
    logits = classifier.head(classifier.extract_feat(torch.randn(2, 3, 64, 64)))
    assert logits.shape == (2, 1000)
