"""mmengine saves and resumes as ever, and reads no checkpoint from anywhere but as data."""
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, checkpoint, load_checkpoint
from torch.utils.data import Dataset

from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint
from ce_mm.compat.safe_load import make_loading_safe

make_loading_safe()


class Model(BaseModel):
    """One linear layer, enough for a runner."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode="tensor"):
        output = self.layer(torch.stack(inputs))
        return {"loss": (output**2).mean()} if mode == "loss" else output


class Points(Dataset):
    METAINFO = {"classes": ("a", "b"), "palette": [(1, 2, 3), (4, 5, 6)]}

    @property
    def metainfo(self):
        return Config(dict(meta=dict(self.METAINFO, more=dict(nested=[1])))).meta  # a ConfigDict, as a config makes

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"inputs": torch.tensor([1.0, index])}


def runner(work_dir: Path, name: str, **options: object) -> Runner:
    return Runner(
        model=Model(), work_dir=str(work_dir), experiment_name=name, default_scope="mmengine",
        train_dataloader=dict(dataset=Points(), batch_size=2, sampler=dict(type="DefaultSampler", shuffle=True)),
        train_cfg=dict(by_epoch=True, max_epochs=options.pop("epochs")),
        optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.01)),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=3),
            dict(type="MultiStepLR", milestones=[1, 2]),
            dict(type="CosineAnnealingLR", T_max=3, convert_to_iter_based=True),
            dict(type="OneCycleLR", eta_max=0.1, total_steps=3, convert_to_iter_based=True),
            dict(type="OneCycleLR", eta_max=0.1, total_steps=3, anneal_strategy="linear"),
        ],
        **options,
    )


def test_training_resumes_from_what_the_runner_saved(tmp_path):
    first = runner(tmp_path, f"first_{tmp_path.name}", epochs=1)
    first.train()
    second = runner(tmp_path, f"second_{tmp_path.name}", epochs=2, resume=True)
    second.load_or_resume()
    assert second.epoch == 1 and second.iter == 2
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor)
    (expected,), (resumed,) = (r.message_hub.log_scalars["train/loss"].data[:1] for r in (first, second))
    assert type(second.message_hub.log_scalars["train/loss"]) is HistoryBuffer
    assert resumed.tolist() == expected.tolist() and len(resumed) == 2
    second.train()
    assert second.epoch == 2
    assert len(second.message_hub.log_scalars["train/loss"].data[0]) == 4


def test_a_runner_loads_the_weights_of_another(tmp_path):
    first = runner(tmp_path, f"first_{tmp_path.name}", epochs=1)
    first.train()
    model = Model()
    load_checkpoint(model, str(tmp_path / "epoch_1.pth"), strict=True)
    assert torch.equal(model.layer.weight, read_checkpoint(tmp_path / "epoch_1.pth")["state_dict"]["layer.weight"])


# --- code in a checkpoint ---------------------------------------------------------------------------------------------


class Malice:
    """Pickles as a shell command that writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(params=["zip", "legacy"])
def malicious(request, tmp_path, monkeypatch):
    """A checkpoint with a command in it, in the folder where torch keeps downloads; the command must never run."""
    canary = tmp_path / "canary"
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("MMENGINE_HOME", str(folder))
    path = folder / "malicious.pth"
    content = {"state_dict": {"layer.weight": torch.ones(1, 2)}, "meta": {"inside": [Malice(canary)]}}
    torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip")
    yield path
    assert not canary.exists(), "code in a checkpoint has run"


def expect_refusal(address: str) -> None:
    with pytest.raises(CheckpointError, match="system, which is more than data"):
        CheckpointLoader.load_checkpoint(address)
    with pytest.raises(CheckpointError):
        load_checkpoint(Model(), address, map_location="cpu")
    with pytest.raises(CheckpointError):
        Model(init_cfg=dict(type="Pretrained", checkpoint=address)).init_weights()
    with pytest.raises(CheckpointError):
        Model(init_cfg=dict(type="Pretrained", prefix="layer.", checkpoint=address)).init_weights()


def test_the_canary_is_alive(tmp_path):
    """What these checkpoints hold does run under plain pickle: that the canary stays away means something."""
    pickle.loads(pickle.dumps([Malice(tmp_path / "alive")]))
    assert (tmp_path / "alive").exists()


def test_a_local_file_runs_nothing(malicious):
    expect_refusal(str(malicious))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_download_runs_nothing(malicious, scheme):
    expect_refusal(f"{scheme}://host.invalid/malicious.pth")


@pytest.mark.parametrize("address, table", [
    ("torchvision://bad", "get_torchvision_models"), ("modelzoo://bad", "get_torchvision_models"),
    ("open-mmlab://bad", "get_external_models"), ("openmmlab://bad", "get_external_models"),
    ("mmcls://bad", "get_mmcls_models"),
])
def test_a_model_of_a_zoo_runs_nothing(malicious, monkeypatch, address, table):
    monkeypatch.setattr(checkpoint, table, lambda: {"bad": "https://host.invalid/malicious.pth"})
    expect_refusal(address)


def test_a_local_model_of_the_openmmlab_zoo_runs_nothing(malicious, monkeypatch):
    monkeypatch.setattr(checkpoint, "get_external_models", lambda: {"bad": malicious.name})
    expect_refusal("openmmlab://bad")


@pytest.mark.parametrize("address", ["s3://bucket/bad.pth", "petrel://bucket/bad.pth", "cluster:s3://bucket/bad.pth"])
def test_an_object_store_runs_nothing(malicious, monkeypatch, address):
    store = SimpleNamespace(get=lambda address: malicious.read_bytes())
    monkeypatch.setattr(checkpoint, "get_file_backend", lambda *args, **kwargs: store)
    expect_refusal(address)


def test_pavi_runs_nothing(malicious, monkeypatch):
    pavi = ModuleType("pavi")
    model = SimpleNamespace(name="bad.pth", download=lambda path: Path(path).write_bytes(malicious.read_bytes()))
    pavi.modelcloud = SimpleNamespace(get=lambda path: model)
    monkeypatch.setitem(sys.modules, "pavi", pavi)
    expect_refusal("pavi://bad")


def test_every_scheme_of_mmengine_is_tried_here():
    assert set(CheckpointLoader._schemes) == {
        "", "http://", "https://", "pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://", "modelzoo://", "torchvision://",
        "open-mmlab://", "openmmlab://", "mmcls://",
    }, "mmengine has a new way to load checkpoints: see that it is safe, and test it here"


def test_the_environment_cannot_switch_safety_off(malicious, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    expect_refusal(str(malicious))
    expect_refusal("https://host.invalid/malicious.pth")


def test_a_chain_of_getattr_runs_nothing(tmp_path):
    class Chain:
        def __reduce__(self):
            return getattr, (HistoryBuffer, "__init__")

    torch.save({"state_dict": {}, "meta": Chain()}, tmp_path / "chain.pth")
    with pytest.raises(CheckpointError, match=r"builtins\.getattr"):
        load_checkpoint(Model(), str(tmp_path / "chain.pth"))


def test_the_config_in_a_checkpoint_is_not_run_when_resuming(tmp_path):
    """Runner.resume would run the text meta['config'] as Python."""
    canary = tmp_path / "canary"
    first = runner(tmp_path, f"first_{tmp_path.name}", epochs=1)
    first.train()
    content = CheckpointLoader.load_checkpoint(str(tmp_path / "epoch_1.pth"))
    content["meta"]["config"] = f"open({str(canary)!r}, 'w')"
    torch.save(content, tmp_path / "epoch_1.pth")
    second = runner(tmp_path, f"second_{tmp_path.name}", epochs=2, resume=True)
    second.load_or_resume()
    assert second.epoch == 1 and not canary.exists()


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, kept):
    path = tmp_path / "damaged.pth"
    torch.save({"state_dict": {"w": torch.ones(9)}}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"damaged\.pth.*copy or download it again"):
        load_checkpoint(Model(), str(path))


def test_a_missing_file_is_still_a_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        load_checkpoint(Model(), str(tmp_path / "absent.pth"))


def test_so_is_one_that_pavi_did_not_bring(monkeypatch):
    pavi = ModuleType("pavi")
    pavi.modelcloud = SimpleNamespace(get=lambda path: SimpleNamespace(name="absent.pth", download=lambda path: None))
    monkeypatch.setitem(sys.modules, "pavi", pavi)
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        CheckpointLoader.load_checkpoint("pavi://absent.pth")


def test_what_is_no_dict_is_read_by_mmengine_as_ever(tmp_path):
    torch.save([torch.ones(2), 1], tmp_path / "list.pth")
    read = CheckpointLoader.load_checkpoint(str(tmp_path / "list.pth"))
    assert torch.equal(read[0], torch.ones(2)) and read[1] == 1
    with pytest.raises(RuntimeError, match="No state_dict found"):
        load_checkpoint(Model(), str(tmp_path / "list.pth"))


# --- the replacement itself -------------------------------------------------------------------------------------------


def test_weights_still_load_from_everywhere(malicious, monkeypatch):
    """The same paths as above, with a harmless checkpoint."""
    torch.save({"state_dict": {"layer.weight": torch.ones(1, 2)}}, malicious)
    store = SimpleNamespace(get=lambda address: malicious.read_bytes())
    monkeypatch.setattr(checkpoint, "get_file_backend", lambda *args, **kwargs: store)
    monkeypatch.setattr(checkpoint, "get_external_models", lambda: {"good": "https://host.invalid/malicious.pth"})
    for address in (str(malicious), "https://host.invalid/malicious.pth", "openmmlab://good", "s3://bucket/good.pth"):
        model = Model()
        load_checkpoint(model, address, map_location="cpu")
        assert torch.equal(model.layer.weight, torch.ones(1, 2)), address


def test_torch_itself_is_left_alone(tmp_path):
    """A program that reads its own pickles unsafely is not ce_mm's business."""
    before = torch.load, torch.hub.load_state_dict_from_url
    make_loading_safe()
    assert (torch.load, torch.hub.load_state_dict_from_url) == before
    assert checkpoint.torch is not torch and checkpoint.torch.save is torch.save
