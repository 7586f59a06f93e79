"""What is looked at before a run: what that run reaches for, and nothing else; each fault is one line."""
import os
from pathlib import Path

import pytest
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook
from small_run import coco_set, config

from ce_mm.launching.config import PreflightError
from ce_mm.launching.preflight import check, check_device, check_settings

pytestmark = pytest.mark.usefixtures("complete_run")
ABSENT = dict(dataset=coco_set(ann_file="absent.json"))


def test_a_complete_run_passes():
    check("train", config())
    check("test", config(load_from="fits.pth"))


def test_data_count_where_they_are_used():
    check("train", config(test_dataloader=ABSENT))
    check("test", config(train_dataloader=ABSENT, val_dataloader=ABSENT, load_from="fits.pth"))
    with pytest.raises(PreflightError, match=r"^val_dataloader: data/absent\.json"):
        check("train", config(val_dataloader=ABSENT))
    check("train", config(val_dataloader=None, val_cfg=None, val_evaluator=None))


def test_settings_and_checkpoints_are_looked_at():
    with pytest.raises(PreflightError, match=r"^custom_hooks"):
        check("train", config(custom_hooks=[dict(type="UnheardOf")]))
    with pytest.raises(PreflightError, match=r"^load_from: absent\.pth"):
        check("train", config(load_from="absent.pth"))
    with pytest.raises(PreflightError, match=r"^the checkpoint to test: absent\.pth"):
        check("test", config(load_from="absent.pth"))


def test_a_device_that_is_not_there_is_named():
    check_device("cpu")
    with pytest.raises(PreflightError, match="the device 'cuda:99' cannot be used"):
        check_device("cuda:99")


def refused(task="train", match="", **changes):
    with pytest.raises(PreflightError, match=match) as refusal:
        check_settings(task, config(**changes))
    assert "\n" not in str(refusal.value)


def test_parts_that_belong_together_are_there_together():
    refused("train", "no optim_wrapper; .* train_dataloader, train_cfg, optim_wrapper together$", optim_wrapper=None)
    refused("test", "no test_dataloader and no test_evaluator", test_dataloader=None, test_evaluator=None)
    refused("train", "no val_evaluator; .* together, or none of them$", val_evaluator=None)
    check_settings("train", config(val_evaluator=None, val_cfg=None, val_dataloader=None))


def test_the_work_folder_can_be_made():
    Path("file").touch()
    refused(match="the work folder .*/file/out: expected a folder .* but .*/file is a file", work_dir="file/out")
    refused(match="the work folder .*/file: expected a folder .* but .*/file is a file", work_dir="file")
    check_settings("train", config(work_dir="several/new/folders"))
    assert not Path("several").exists()


def test_a_work_folder_that_may_not_be_written_to_is_refused(monkeypatch):
    Path("locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")  # root may write everywhere
    refused(match="the work folder .*/locked/out: .*/locked may not be written to", work_dir="locked/out")


@pytest.mark.parametrize(
    ("launcher", "variable"), [("pytorch", "RANK"), ("slurm", "SLURM_PROCID"), ("mpi", "OMPI_COMM_WORLD_RANK")]
)
def test_a_launcher_that_has_not_started_this_process_is_named(monkeypatch, launcher, variable):
    monkeypatch.delenv(variable, raising=False)
    refused(match=f"--launcher {launcher}: the environment has no {variable}", launcher=launcher)
    monkeypatch.setenv(variable, "0")
    check_settings("train", config(launcher=launcher))


class OwnMetric(BaseMetric):
    """Of a pure Python config, in no registry."""


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("custom_hooks", [dict(type="NonFiniteHook"), dict(type="UnheardOf")]),
        ("default_hooks", dict(checkpoint=dict(type="UnheardOf"), logger=None)),
        ("optim_wrapper.optimizer", dict(optimizer=dict(type="UnheardOf"))),
        ("param_scheduler", dict(type="UnheardOf")),
        ("visualizer", dict(type="UnheardOf")),
        ("visualizer.vis_backends", dict(type="UniversalVisualizer", vis_backends=[dict(type="UnheardOf")])),
        ("val_evaluator", dict(type="Evaluator", metrics=[dict(type="UnheardOf")])),
    ],
)
def test_a_type_that_nobody_registered_is_named_with_its_setting(setting, value):
    refused(match=f"^{setting}: the type 'UnheardOf' is unknown in mmpretrain", **{setting.partition(".")[0]: value})


@pytest.mark.parametrize(
    "changes",
    [
        dict(custom_hooks=[dict(type=CheckpointHook)]),
        dict(default_hooks=dict(checkpoint=dict(type="mmengine.CheckpointHook"), logger=None)),
        dict(param_scheduler=[dict(type="MultiStepLR", milestones=[1])]),
        dict(val_evaluator=[dict(type="Accuracy"), dict(type=OwnMetric)]),
        dict(test_evaluator=dict(type="UnheardOf")),
        dict(visualizer=dict(type="mmdet.DetLocalVisualizer", vis_backends=None)),
    ],
)
def test_types_by_name_by_class_or_of_no_use_in_this_run_pass(changes):
    check_settings("train", config(**changes))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(num_workers=0, persistent_workers=True), "persistent_workers option needs num_workers > 0"),
        (dict(nums=2), "unexpected keyword argument 'nums'"),
        (dict(num_workers=0, prefetch_factor=4), "prefetch_factor option could only be specified in multiprocessing"),
        (dict(num_workers=-1), "num_workers option should be non-negative"),
    ],
)
def test_what_pytorchs_loader_refuses_is_named_with_its_dataloader(options, said):
    loader = dict(config().train_dataloader, **options)
    refused(match=f"^val_dataloader with .*{said}", val_dataloader=loader)
    check_settings("test", config(val_dataloader=loader))
