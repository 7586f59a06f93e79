"""A network from a config and a checkpoint, on this machine or not, that fit each other."""
import pytest
import torch
from small_run import config, state_dict

from ce_mm.launching.config import PreflightError
from ce_mm.launching.network import load_network

pytestmark = pytest.mark.usefixtures("complete_run")
ADDRESS = "https://host.invalid/weights.pth"


@pytest.fixture
def download(tmp_path, monkeypatch):
    """Save a checkpoint as what torch has fetched from ADDRESS."""
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("MMENGINE_HOME", str(folder))
    return lambda checkpoint: torch.save(checkpoint, folder / "weights.pth")


def test_the_checkpoint_s_weights_are_in_the_network_which_is_in_eval_mode():
    weights = {f"module.{name}": value + 1 for name, value in state_dict().items()}
    torch.save(dict(state_dict=weights), "other.pth")
    model, recorded = load_network(config(), "other.pth")
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, weights[f"module.{name}"]) for name, value in model.state_dict().items())
    assert recorded == {}


def test_weights_from_an_address_are_loaded_and_must_fit_too(download):
    weights = {name: value + 1 for name, value in state_dict().items()}
    download(weights)
    model, _ = load_network(config(), ADDRESS)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    name, _ = weights.popitem()
    download(weights)
    with pytest.raises(PreflightError, match=rf"^{ADDRESS} does not fit .*: 1 missing keys \(first: {name}\)"):
        load_network(config(), ADDRESS)


@pytest.mark.parametrize(
    ("meta", "recorded"),
    [
        (dict(dataset_meta=dict(classes=("a", "b"), palette=[5])), dict(classes=("a", "b"), palette=[5])),
        (dict(dataset_meta=dict(CLASSES=("a", "b"))), dict(classes=("a", "b"))),
        (dict(CLASSES=("a", "b"), epoch=3), dict(classes=("a", "b"), epoch=3)),
        *((meta, {}) for meta in (None, 5, dict(epoch=3), dict(dataset_meta=[]), dict(classes=None))),
    ],
    ids=str,
)
def test_what_a_checkpoint_records_of_the_data_comes_with_it(meta, recorded):
    torch.save(dict(state_dict=state_dict(), meta=meta), "named.pth")
    assert load_network(config(), "named.pth")[1] == recorded


@pytest.mark.parametrize(
    ("changes", "checkpoint", "device", "said"),
    [
        ({}, "absent.pth", "cpu", r"^absent\.pth: there is no such checkpoint"),
        ({}, "fits.pth", "cuda:99", "^the device 'cuda:99' cannot be used; expected cpu, or cuda with a GPU: "),
        (dict(model=dict(backbone=dict(type="LeNet5"))), "fits.pth", "cpu", "has no model with a type; expected"),
    ],
)
def test_what_cannot_be_used_is_named(changes, checkpoint, device, said):
    with pytest.raises(ValueError, match=said) as refusal:
        load_network(config(**changes), checkpoint, device)
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, ("open('ran', 'w')",)

    torch.save(dict(state_dict={}, meta=Evil()), "evil.pth")
    with pytest.raises(ValueError, match="more than data"):
        load_network(config(), "evil.pth")
    assert not (tmp_path / "ran").exists()
