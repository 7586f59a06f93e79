"""The code of the page on extending the package: its files written and imported, the rest run from top to bottom."""
import copy
import importlib
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from mmpretrain.structures import DataSample
from torchvision.models import resnet18

from ce_mm import ops
from ce_mm.layers import CENorm, equalize, fold, norms
from ce_mm.ops import RELU, RELU6, backends
from ce_mm.ops.reference import Averages, Gate, equilibrium

PAGE = Path(__file__).resolve().parents[2] / "docs/extending.md"
BRANCHES = [("bd", "ir"), ("bd",), ("ir",)]


@pytest.fixture(scope="module")
def page(tmp_path_factory, checkout):
    """The names that the page's python blocks define, run in a checkout that they leave clean.

    The page's files are in a folder of the user's. What is put into the package's tables is gone afterwards.
    """
    folder, text, names = tmp_path_factory.mktemp("page"), PAGE.read_text(encoding="utf-8"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout)
        patch.syspath_prepend(folder)
        patch.setattr(norms, "KINDS", list(norms.KINDS))
        patch.setattr(norms, "EXACT", dict(norms.EXACT))
        patch.setattr(backends, "BACKENDS", dict(backends.BACKENDS))
        patch.delenv("CE_MM_BACKEND", raising=False)
        backends.choose.cache_clear()
        for block in re.finditer(r"^```python\n(?:# (\w+\.py)\n)?(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if block[1]:
                (folder / block[1]).write_text(block[2], encoding="utf-8")
            else:
                above = text.count("\n", 0, block.start(2))  # so that an error names the line of the page
                exec(compile("\n" * above + block[2], str(PAGE), "exec"), names)
        names["backend"] = importlib.import_module("ce_double")
        import_modules_from_strings(**names["custom_imports"])
        backends.choose.cache_clear()
        yield names
    backends.choose.cache_clear()


@pytest.fixture
def choose(page, monkeypatch):
    """Has the backend of float32 on a CPU chosen by the value of CE_MM_BACKEND."""

    def chosen(value):
        monkeypatch.setenv("CE_MM_BACKEND", value)
        backends.choose.cache_clear()
        return backends.choose(torch.device("cpu"), torch.float32, 4)

    yield chosen
    backends.choose.cache_clear()


def on_rms(branches=BRANCHES[0], **kwargs):
    """A CENorm on the page's norm, in float64, with all parameters away from their starts."""
    torch.manual_seed(0)
    ce = CENorm(16, norm=dict(type="RMS", eps=1e-3), group_size=4, branches=branches, **kwargs).double()
    with torch.no_grad():
        for parameter in ce.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return ce


def maps(dtype=torch.float64, seed=1):
    """(3, 16, 6, 5), of channels that lie apart from each other, some of them far from 0."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 16, 6, 5, dtype=torch.float64, generator=draw) + torch.linspace(-3, 30, 16)[:, None, None]
    return x.to(dtype)


def by_the_paper(ce, x, running=None):
    """CE of the norm's own output."""
    ir = ce.ir
    gate = None if ir is None else Gate(ir.fc1.weight, ir.ln.weight, ir.ln.bias, ir.fc2.weight)
    max_pool = ce.bd is not None and ce.bd.max_pool
    kwargs = dict(branches=ce.branches, group_size=4, max_pool=max_pool, running=running)
    return equilibrium(ce.norm(x), gate, ce.mix, **kwargs)


@pytest.mark.parametrize("kwargs", [*(dict(branches=each) for each in BRANCHES), dict(max_pool=True)], ids=str)
def test_ce_on_the_new_norm_is_the_paper_s_with_its_gradients(page, kwargs):
    ce, x, dy = on_rms(**kwargs), maps().requires_grad_(), torch.randn(3, 16, 6, 5, dtype=torch.float64)
    inputs = [x, *ce.parameters()]
    (expected, _), y = by_the_paper(ce, x), ce(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy))


@pytest.mark.parametrize("branches", BRANCHES, ids=str)
def test_the_new_norm_folds(page, branches):
    ce = on_rms(branches)
    ce(maps())
    expected, _ = by_the_paper(
        ce, maps(seed=2), Averages(ce.bd and ce.bd.running_whitening, ce.ir and ce.ir.running_inv_std_scale)
    )
    torch.testing.assert_close(ce.eval()(maps(seed=2)), expected)
    torch.testing.assert_close(fold(ce)(maps(seed=2)), expected)


def test_the_new_norm_folds_where_no_branch_is(page):
    torch.testing.assert_close(fold(on_rms(()))(maps()), on_rms(()).norm(maps()))


def test_the_new_norm_takes_its_statistics_from_all_processes(page, monkeypatch):
    ce = on_rms(sync=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(ops, "spans_processes", lambda group: True)
    try:
        y = ce(maps())
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(y, by_the_paper(ce, maps())[0])


def test_the_layer_of_the_page_has_learnt(page):
    layer = page["layer"]
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())
    assert not layer.bd.is_at_start() and not layer.ir.is_at_start()
    x = torch.randn(4, 32, 8, 8)
    torch.testing.assert_close(page["folded"](x), layer.eval()(x))


def test_a_backbone_takes_the_new_norm_by_a_config(page):
    backbone = MODELS.build(dict(type="CEResNet", depth=18, base_channels=16, ce_cfg=dict(norm=dict(type="RMS"))))
    assert type(backbone.layer1[0].bn2.norm) is page["rms_kind"].RMSNorm2d


def test_the_backbone_trains_a_step_as_its_config_says(page):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        classifier = MODELS.build(page["model"])
    classifier.init_weights()
    layers = {name: module for name, module in classifier.named_modules() if isinstance(module, CENorm)}
    units = [f"backbone.layers.{i}.{j}" for i, n in enumerate((4, 8, 4)) for j in range(n)]
    assert list(layers) == [f"{unit}.g_conv_1x1_expand.bn" for unit in units]
    before = copy.deepcopy(classifier.state_dict())
    labels = [DataSample().set_gt_label(label) for label in (1, 7)]
    loss = classifier.train().loss(torch.randn(2, 3, 64, 64), labels)["loss"]
    loss.backward()
    torch.optim.SGD(classifier.parameters(), lr=0.1).step()
    for name, value in classifier.state_dict().items():
        assert value.isfinite().all() and not torch.equal(value, before[name]), name


def test_frozen_stages_and_norm_eval_reach_ce_in_the_backbone(page):
    backbone = MODELS.build(page["model"]["backbone"] | dict(frozen_stages=1, norm_eval=True))
    assert not any(p.requires_grad for p in backbone.layers[0].parameters())
    assert all(p.requires_grad for p in backbone.layers[1].parameters())
    backbone.train()
    assert not any(ce.norm.training for ce in backbone.modules() if isinstance(ce, CENorm))


def test_the_plain_network_has_ce_where_the_page_says():
    network = resnet18()
    (where,) = re.findall(r"equalize\(network, where=\"(.*)\"\)", PAGE.read_text(encoding="utf-8"))
    equalize(network, where=where)
    places = [name for name, module in network.named_modules() if isinstance(module, CENorm)]
    assert places == [f"layer{stage}.{block}.bn2" for stage in (1, 2, 3) for block in (0, 1)]


def test_the_environment_chooses_the_backend(page, choose):
    assert choose("double") is choose("") is page["backend"]
    assert choose("-double") is not page["backend"]
    assert choose("plain") is backends.plain
    choose("double")
    assert backends.choose(torch.device("cpu"), torch.float64, 4) is backends.plain


@pytest.mark.parametrize("rectifier", [None, RELU, RELU6])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_backend_gives_plain_s_results(page, choose, dtype, tolerance, rectifier):
    def step(backend):
        torch.manual_seed(0)
        ce, x, residual = CENorm(16, group_size=4), maps(dtype).requires_grad_(), maps(dtype, seed=2).requires_grad_()
        choose(backend)
        y = ce(x, residual, rectifier)
        y.backward(maps(dtype, seed=3))
        return [y, x.grad, residual.grad, *(p.grad for p in ce.parameters()), *ce.buffers()]

    ours, plain_s = step("double"), step("plain")
    assert not all(map(torch.equal, ours, plain_s))
    for one, other in zip(ours, plain_s, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.abs().amax().item())
