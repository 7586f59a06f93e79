"""The command ``ce_mm``: what it lists, what it starts, and that a help waits for no library."""
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from without_openmmlab import LIBRARIES

from ce_mm.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
LISTED = {name: what for group in COMMANDS.values() for name, what in group.items()}
#: Command -> the tool of a checkout that is the same.
TOOLS = {
    "train": "train", "test": "test", "eval": "eval_coco", "plot": "analysis.plot_training",
    "draw": "analysis.draw_predictions", "convert": "convert_checkpoint", "verify": "verify_checkpoint",
    "predict": "predict", "export": "export", "inhibited": "analysis.inhibited_channels",
    "ablation": "analysis.ablation", "spectrum": "analysis.spectrum", "norms": "analysis.norm_parameters",
    "shapes": "make_shapes", "subset": "subset_coco",
}  # fmt: skip


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_alone_it_prints_its_help_with_a_line_for_each_command(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {f"  {name:<11}{what}" for name, what in LISTED.items()} <= set(lines)
    assert max(map(len, lines)) <= 120


def test_every_module_is_a_command_and_every_tool_of_users_is_one():
    modules = {path.stem for path in (ROOT / "ce_mm/commands").glob("*.py")}
    assert modules - {"__init__"} == set(LISTED)
    tools = [*(ROOT / "tools").glob("*.py"), *(ROOT / "tools/analysis").glob("*.py")]
    named = {".".join(tool.relative_to(ROOT / "tools").with_suffix("").parts) for tool in tools}
    assert named - {"setup_env"} == set(TOOLS.values())


@pytest.mark.parametrize("name", TOOLS)
def test_it_is_the_function_of_the_tool(name):
    tool, command = (importlib.import_module(of) for of in (f"tools.{TOOLS[name]}", f"ce_mm.commands.{name}"))
    assert tool.main is command.main


def test_a_command_finds_its_arguments_where_a_program_does_and_says_how_it_ended(monkeypatch):
    def convert():
        assert sys.argv == ["ce_mm convert", "a.pth", "--help", "--", "-x"]
        return 7

    monkeypatch.setattr("ce_mm.commands.convert.main", convert)
    assert main(["convert", "a.pth", "--help", "--", "-x"]) == 7


def test_ctrl_c_ends_it_with_130(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("ce_mm.commands.eval.main", interrupted)
    assert main(["eval"]) == 130


def test_an_unknown_command_is_answered_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as end:
        main(["convrt"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "'convrt'" in error and "'convert'" in error


HELPS = """
import sys
from contextlib import suppress
from ce_mm.__main__ import main
for name in {names}:
    with suppress(SystemExit):
        main([name, "--help"])
        raise AssertionError(name)
print(sorted(sys.modules.keys() & {{"torch", "numpy", "mmengine", "mmcv", "mmdet", "mmpretrain", "matplotlib", "PIL"}}))
"""


def test_a_help_imports_no_library():
    names = sorted(set(LISTED) - {"train", "test"})  # which have upstream's options, from upstream's parser
    run = subprocess.run([sys.executable, "-c", HELPS.format(names=names)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("usage: ce_mm ") == len(names)
    assert run.stdout.splitlines()[-1] == "[]"


ALONE = """
import sys
sys.modules.update(dict.fromkeys({blocked}))
from ce_mm.__main__ import main
for command in {commands}:
    assert main(command.split()) == 2, command
"""


def test_a_library_that_is_missing_is_one_line():
    commands = [
        "train a.py", "test a.py b.pth", "convert a.pth b.pth", "verify a.pth", "inhibited a.py b.pth",
        "norms a.py b.pth --cfg-options x=1", "predict a.py b.pth c.png --out d",
        "export a.py b.pth --format onnx --out c", "run mmdet x.py",
    ]  # fmt: skip
    code = ALONE.format(blocked=LIBRARIES, commands=commands)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stderr.splitlines()
    assert len(lines) == len(commands) and all(line.startswith("error: ce_mm needs mm") for line in lines)
