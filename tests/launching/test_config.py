"""Which file a name stands for; what is tried in front of a run says nothing, and the run all that it has to say."""
import logging
from collections import OrderedDict
from pathlib import Path

import pytest
from mmengine.logging import MMLogger, print_log

from ce_mm.launching.config import PreflightError, config_path, silence

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAME = "coco/mask-rcnn_ce-r50_fpn_2x_coco.py"


def test_a_name_is_of_the_repository_or_of_what_a_package_has_installed(monkeypatch, tmp_path):
    assert config_path(f"ce_mm::{NAME}") == str(CONFIGS / NAME)
    assert Path(config_path("mmpretrain::resnet/resnet18_8xb32_in1k.py")).parts[-4:-2] == (".mim", "configs")
    monkeypatch.syspath_prepend(tmp_path)
    for folder in ("mine", "mine/.mim/configs"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("mine/__init__.py", "mine/.mim/configs/a.py", "mine::b.py"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    assert config_path("mine::a.py") == str(tmp_path / "mine/.mim/configs/a.py")
    for path in ("mine::b.py", "none/a.py", "a::"):
        assert config_path(path) == path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ce_mm::coco/absent.py", "ce_mm::coco/absent.py: there is no such config; expected one below .*configs$"),
        ("absent::a.py", "there is no package 'absent'; expected ce_mm, mmpretrain or mmdet"),
        ("not a name::a.py", "there is no package 'not a name'"),
        ("json::a.py", "json was installed without its configs"),
    ],
)
def test_a_name_that_stands_for_nothing_says_why(name, said):
    with pytest.raises(PreflightError, match=said):
        config_path(name)


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_mmengine_s_log_is_silent_inside_and_only_there(monkeypatch, capsys, level):
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())
    with silence():
        print_log("inside, at first", logger="current", level=level)
    print_log("behind", logger="current", level=level)
    with silence():
        print_log("inside, once more", logger="current", level=level)
        print("on stdout")
    said = "".join(capsys.readouterr())
    assert said.count("\n") == 1 and said.endswith("behind\n")
