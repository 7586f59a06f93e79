"""What is looked at before a run: what that run reaches for, and nothing else."""
import pytest
from small_run import coco_set, config

from ce_mm.launching.preflight import PreflightError, check, check_device

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
