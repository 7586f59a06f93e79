import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ce_mm.layers import CENorm, SwitchableNorm
from tools.evidence.cifar10 import training
from tools.evidence.cifar10.measuring import measure
from tools.evidence.cifar10.network import VARIANTS, build_network
from tools.evidence.cifar10.running import plan
from tools.evidence.cifar10.training import RECIPES, evaluate, resume, train


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_from_a_batch(name):
    torch.manual_seed(0)
    network = build_network(VARIANTS[name], (8, "M", 16))
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    assert any(isinstance(module, CENorm) for module in network.modules()) == (VARIANTS[name].ce is not None)


def test_the_paper_s_network_has_thirteen_convolutions():
    network = build_network(VARIANTS["BN+ReLU"], RECIPES["paper"].widths)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 13


def test_the_paper_s_rate_falls_by_ten_every_sixty_epochs():
    rate = RECIPES["paper"].rate
    assert [rate(epoch) for epoch in (0, 59.9, 60, 120, 159.9)] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])


def test_the_short_recipes_put_the_paper_s_decay_on_the_weights():
    paper = 195 * (60 * 0.1 + 60 * 0.01 + 40 * 0.001) * 5e-4
    assert RECIPES["paper"].decay() == pytest.approx(paper)
    assert RECIPES["decay"].decay() == RECIPES["decay-weights"].decay() == pytest.approx(paper, rel=0.05)
    assert RECIPES["short"].decay() < 0.1 * paper


@pytest.mark.parametrize("variant", ["BN+ReLU", "BN+CE+ReLU", "GN+CE+ReLU", "SN+ReLU"])
def test_gamma_and_beta_alone_are_spared_from_decay(variant, recipe, tmp_path):
    network, optimizer, _ = resume(variant, 0, replace(recipe, norm_decay=False), tmp_path)
    decays = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    norms = [module for module in network.modules() if isinstance(module, (_NormBase, nn.GroupNorm, SwitchableNorm))]
    spared = {id(weight) for norm in norms for weight in (norm.weight, norm.bias)}
    assert {weight for weight, decay in decays.items() if decay == 0} == spared
    assert decays.keys() == {id(weight) for weight in network.parameters()}
    assert set(decays.values()) == {0, recipe.weight_decay}


def test_a_mixed_training_has_bfloat16_maps_and_float32_weights(tmp_path, data, recipe, monkeypatch):
    types = set()
    forward = nn.Conv2d.forward

    def watched(self, x):
        y = forward(self, x)
        types.add((self.training, y.dtype, y.is_contiguous(memory_format=torch.channels_last)))
        return y

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    mixed = replace(recipe, mixed=True, epochs=1)
    assert train("BN+CE+ReLU", 0, mixed, data, tmp_path, 0.01)
    assert types == {(True, torch.bfloat16, True), (False, torch.float32, True)}
    assert {weight.dtype for weight in resume("BN+CE+ReLU", 0, mixed, tmp_path)[0].parameters()} == {torch.float32}


def test_a_training_that_was_stopped_ends_with_the_same_weights(tmp_path, data, recipe, monkeypatch):
    arguments = ("BN+CE+ReLU", 1, recipe, data)
    assert train(*arguments, tmp_path / "whole", 0.01)
    with monkeypatch.context() as patch:
        answers = iter([evaluate])  # the second epoch finds none
        patch.setattr(training, "evaluate", lambda *batches: next(answers)(*batches))
        with pytest.raises(StopIteration):
            train(*arguments, tmp_path / "parts", 0.01)
    assert len(json.loads((tmp_path / "parts" / "curve.json").read_text())) == 1
    assert train(*arguments, tmp_path / "parts", 0.01)
    whole, parts = (resume(*arguments[:3], tmp_path / name)[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_after_the_time_is_up_no_epoch_begins(tmp_path, data, recipe):
    assert not train("BN+ReLU", 0, recipe, data, tmp_path / "late", 0.01, until=0)
    assert not (tmp_path / "late" / "state.pt").exists()


def test_a_trained_network_is_measured_layer_by_layer(measured):
    assert measured["accuracy"] == measured["curve"][-1]["accuracy"]
    assert [len(layer) for layer in measured["magnitudes"]] == [8, 16, 16, 16]
    assert measured["inhibited"] == pytest.approx(
        sum(sum(value < 0.01 for value in layer) / len(layer) for layer in measured["magnitudes"]) / 4
    )
    assert len(measured["smallest_first"]) == len(measured["ratios"]) == 10
    assert [len(curve) for curve in measured["at_random"]] == [10] * 5
    assert {which: part["channels"] for which, part in measured["norms"].items()} == dict(inhibited=0, others=56)


def test_gamma_and_beta_are_those_of_inhibited_channels(tmp_path, data, recipe):
    network, optimizer, _ = resume("BN+CE+ReLU", 0, recipe, tmp_path)
    last = network[5].norm
    nn.init.constant_(last.weight, -0.001)
    nn.init.constant_(last.bias, 1.0)
    torch.save(dict(network=network.state_dict(), optimizer=optimizer.state_dict(), curve=[]), tmp_path / "state.pt")
    magnitudes = [[1.0] * 8, [1.0] * 16, [1.0] * 16, [0.0] * 16]
    (tmp_path / "measured.json").write_text(json.dumps(dict(threshold=0.01, magnitudes=magnitudes)))
    norms = measure("BN+CE+ReLU", 0, recipe, data, tmp_path, 0.01)["norms"]
    assert norms["inhibited"] == dict(channels=16, nonpositive=0, gamma=pytest.approx(0.001))
    assert norms["others"] == dict(channels=40, nonpositive=40, gamma=1.0)  # β starts at 0


def test_the_main_pair_comes_first_and_has_all_seeds():
    runs = plan(["BN+ELU", "BN+CE+ReLU", "BN+ReLU"], 2)
    assert runs == [("BN+ReLU", 0), ("BN+CE+ReLU", 0), ("BN+ReLU", 1), ("BN+CE+ReLU", 1), ("BN+ELU", 0)]
    assert plan(["BN+ELU", "SN+ReLU"], 1, 2) == [(name, seed) for seed in (0, 1) for name in ("BN+ELU", "SN+ReLU")]


def test_an_unknown_variant_is_refused_by_name():
    with pytest.raises(ValueError, match="'BN\\+XE' is no variant"):
        plan(["BN+XE"], 1)
