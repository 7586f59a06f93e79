"""The code of the page "CE in your own network", run from top to bottom, and what it builds."""
import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.backbones import RegNet

from ce_mm.layers import CENorm

PAGE = Path(__file__).resolve().parents[2] / "docs/own_network.md"


@pytest.fixture(scope="module")
def page():
    """The names that the page's python blocks define."""
    text, names = PAGE.read_text(encoding="utf-8"), {}
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        above = text.count("\n", 0, block.start(1))  # so that an error names the line of the page
        exec(compile("\n" * above + block[1], str(PAGE), "exec"), names)
    return names


def places(model):
    return [name for name, module in model.named_modules() if isinstance(module, CENorm)]


def test_every_block_of_the_regnet_has_ce_after_its_last_convolution(page):
    stages = [1, 2, 7, 12]  # blocks of RegNetX-400MF
    assert places(page["network"]) == [f"layer{i + 1}.{j}.bn3" for i, n in enumerate(stages) for j in range(n)]
    assert page["report"].missing_keys


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
    assert not any(ce.norm.training for ce in model.modules() if isinstance(ce, CENorm))


def test_the_config_builds_a_classifier(page):
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        classifier = MODELS.build(page["model"])
    assert len(places(classifier)) == 22
    logits = classifier.head(classifier.extract_feat(torch.randn(2, 3, 64, 64)))
    assert logits.shape == (2, 1000)


def test_convolutions_and_blocks_have_ce_and_run(page):
    assert places(page["conv"]) == ["bn"]
    assert page["conv"](torch.randn(2, 64, 8, 8)).shape == (2, 128, 6, 6)
    block = page["Block"](32)
    assert places(block) == ["bn2"]
    assert (block(torch.randn(2, 32, 8, 8)) >= 0).all()
