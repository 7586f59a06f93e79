"""The folder of a run that has all that it needs."""
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from small_run import COCO, state_dict


@pytest.fixture
def complete_run(tmp_path, monkeypatch):
    """A working folder with a COCO set and a checkpoint that fits the model of `small_run`, in no scope of mmengine's.

    A runner leaves its scope behind for all that comes after it in the process.
    """
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())
    monkeypatch.chdir(tmp_path)
    Path("data/pictures").mkdir(parents=True)
    Path("data/objects.json").write_text(json.dumps(COCO))
    Path("data/names.txt").write_text("1.png 0\n")
    torch.save({"state_dict": state_dict()}, "fits.pth")
