import pytest
import torch

from ce_mm.layers import CENorm
from tools.evidence.cifar10.gn_ln.__main__ import main
from tools.evidence.cifar10.gn_ln.altered import Altered
from tools.evidence.cifar10.gn_ln.cases import CASES, build, follow, look
from tools.evidence.cifar10.gn_ln.page import page

LOOK = dict(inhibited=[0] * 7, silent=[0] * 7, before=[0, 0, 0, 1, 2, 6, 0], after=[0] * 7)


def layer(groups: int) -> CENorm:
    torch.manual_seed(0)
    ce = CENorm(32, norm=dict(type="GN", num_groups=groups)).double()
    for parameter in ce.parameters():
        torch.nn.init.normal_(parameter)
    return ce


@pytest.fixture
def x():
    """Four samples in which every channel has a mean of its own."""
    random = torch.Generator().manual_seed(1)
    noise, means = torch.randn(4, 32, 5, 5, generator=random), torch.randn(32, 1, 1, generator=random)
    return (noise + 2 * means).double()


@pytest.mark.parametrize("groups", [8, 1])
def test_with_nothing_altered_it_is_ce(x, groups):
    ce = layer(groups)
    torch.testing.assert_close(Altered(ce, None)(x), ce(x))


@pytest.mark.parametrize("change", ["centred", "products", "diagonal"])
def test_every_change_changes_something(x, change):
    ce = layer(8)
    assert (Altered(ce, change)(x) - ce(x)).abs().max() > 0.1


def test_a_centred_channel_has_mean_beta(x):
    ce = layer(8)
    torch.testing.assert_close(Altered(ce, "centred").normalised(x).mean((0, 2, 3)), ce.bias)


def test_of_centred_channels_products_are_the_covariance(x):
    ce = layer(8)
    centred = Altered(ce, "centred").normalised(x)
    torch.testing.assert_close(Altered(ce, "products").sigma(centred), Altered(ce, None).sigma(centred))


def test_bn_that_is_not_centred_scales_alone(x):
    ce = CENorm(32, norm=dict(type="BN"), branches=()).double()
    y = Altered(ce, "uncentred")(x)
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(32).double(), atol=1e-4, rtol=0)
    assert y.mean((0, 2, 3)).abs().max() > 1


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_followed(data, recipe, name):
    found = follow(CASES[name], recipe, data, 0, 2, (0, 2), 0.01, name)
    assert [seen["step"] for seen in found] == [0, 2]
    assert len(found[1]["before"]) == len(found[1]["after"]) == 4
    assert found[0]["after"] != found[1]["after"]
    assert len(found[1]["averages"]["inhibited"]) == 4


def test_a_look_leaves_the_network_as_it_was(recipe):
    network = build(CASES["GN+CE"], recipe.widths)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    look(network, torch.randn(4, 3, 32, 32), 0.01)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training


def test_a_channel_that_is_zero_everywhere_is_silent_and_inhibited(recipe):
    network = build(CASES["GN"], recipe.widths)
    torch.nn.init.constant_(network[0].norm.bias[:1], -100)
    found = look(network, torch.randn(4, 3, 32, 32), 0.01)
    assert found["silent"][0] == found["inhibited"][0] == 1
    assert found["after"][0] == found["before"][0] == pytest.approx(100 / 8**0.5, rel=0.1)


def test_the_page_has_a_row_for_each_case():
    cases = {name: [LOOK | dict(step=0), LOOK | dict(step=5, averages=LOOK)] for name in CASES}
    text = page(dict(command="it", torch="2", ce_mm="1", steps=5, pictures=3, threshold=0.01, cases=cases))
    assert all(f"| {name} | 0 0 0 0 0 0 0 |" in text for name in CASES)
    assert "| 3.00 | 3.00 |" in text


def test_a_file_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gn_ln", str(tmp_path / "absent.npz"), "--out", str(tmp_path / "out")])
    assert main() == 2
    assert "absent.npz: there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
