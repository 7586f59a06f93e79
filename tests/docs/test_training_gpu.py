"""The page on GPUs: its class makes a network channels-last, and the counts of its table are those of a layer today."""
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from mmpretrain.structures import DataSample

from ce_mm.layers import CENorm
from tools.evidence.launches import CASES, calls_of_a_step

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/training_gpu.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_the_calls_of_a_step_are_those_of_the_table(case):
    ((passes, others),) = re.findall(rf"^\| {re.escape(case)} \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    counted = calls_of_a_step(**CASES[case])
    assert counted.passes == int(passes)
    assert counted.others == pytest.approx(int(others), rel=0.05)  # a release of PyTorch may split or join one


def test_the_table_has_no_other_cases():
    assert len(re.findall(r"^\| .* \| \d+ \| \d+ \|$", PAGE, re.MULTILINE)) == len(CASES)


@pytest.fixture
def classifier(tmp_path, monkeypatch):
    """The page's, of a small network."""
    module, config = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "channels_last.py").write_text(module, encoding="utf-8")
    (tmp_path / "config.py").write_text(config.replace('"configs/', f'"{ROOT}/configs/'), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = Config.fromfile(tmp_path / "config.py", import_custom_modules=False)
    cfg.merge_from_dict({"model.backbone.depth": 18, "model.head.in_channels": 512})
    import_modules_from_strings(**cfg.custom_imports)
    try:
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            yield MODELS.build(cfg.model)
    finally:
        MODELS.module_dict.pop("ChannelsLastClassifier")
        sys.modules.pop("channels_last")


def test_all_maps_of_ce_and_all_gradients_are_channels_last(classifier):
    torch.manual_seed(0)
    seen = []
    layers = [module for module in classifier.modules() if isinstance(module, CENorm)]
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.extend((*inputs, output)))
    classifier.init_weights()

    labels = [DataSample().set_gt_label(label) for label in (1, 2)]
    classifier.train().loss(torch.randn(2, 3, 64, 64), labels)["loss"].backward()

    seen += [p.grad for p in classifier.parameters() if p.dim() == 4]
    assert len(seen) == 2 * len(layers) + 20
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen)


@pytest.mark.parametrize("name", ["imagenet/ce-resnet50_8xb32_in1k", "coco/mask-rcnn_ce-r50_fpn_2x_coco"])
def test_cudnn_s_trials_are_off_unless_asked_for(name):
    assert Config.fromfile(ROOT / f"configs/{name}.py").env_cfg.cudnn_benchmark is False
