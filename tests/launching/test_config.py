"""What is tried in front of a run says nothing, and the run says all that it has to say."""
import logging
from collections import OrderedDict

import pytest
from mmengine.logging import MMLogger, print_log

from ce_mm.launching.config import silence


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
