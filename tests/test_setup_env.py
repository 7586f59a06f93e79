"""The set-up script's decisions, with cheap commands in place of pip: what is reused, rebuilt, refused, waited for."""
import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
Usage = namedtuple("Usage", "free")


@pytest.fixture
def setup_env(monkeypatch):
    """The script as a module, whose steps are: a real environment without pip, then a file in it."""
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "NEEDED_BYTES", 0)
    monkeypatch.setattr(module, "steps", lambda root, interpreter: cheap_steps(module, root, interpreter))
    return module


def cheap_steps(module, root, interpreter):
    venv = root / ".venv"
    return [
        module.Step("making", [interpreter.path, "-I", "-m", "venv", "--without-pip", str(venv)], str),
        module.Step("installing", ["sh", "-c", "echo made >> .venv/installed; echo done >> log"], str),
    ]


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "a repository"
    root.mkdir()
    (root / "requirements.txt").write_text("package==1.0\n")
    (root / "setup.py").write_text("setup()\n")
    return root


def executable(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def set_ups_run(root):
    return (root / "log").read_text().count("done")


def test_a_finished_environment_is_reused(setup_env, repository):
    setup_env.set_up(repository)
    setup_env.set_up(repository)
    assert set_ups_run(repository) == 1
    assert not (repository / ".venv" / "tmp").exists()


@pytest.mark.parametrize("name", ["requirements.txt", "setup.py"])
def test_a_change_of_what_it_is_made_from_makes_it_anew(setup_env, repository, name):
    setup_env.set_up(repository)
    (repository / ".venv" / "leftover").touch()
    (repository / name).write_text("something else\n")
    setup_env.set_up(repository)
    assert set_ups_run(repository) == 2
    assert not (repository / ".venv" / "leftover").exists()


def test_a_moved_environment_is_made_anew(setup_env, repository):
    setup_env.set_up(repository)
    moved = repository.rename(repository.with_name("moved"))
    assert not setup_env.is_reusable(moved)


def test_another_interpreter_version_has_another_stamp(setup_env, repository):
    assert setup_env.fingerprint(repository, (3, 12, 1)) != setup_env.fingerprint(repository, (3, 12, 2))


def test_an_environment_whose_interpreter_is_gone_is_made_anew(setup_env, repository):
    setup_env.set_up(repository)
    python = repository / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(repository / "nowhere")
    assert not setup_env.is_reusable(repository)


@pytest.mark.parametrize("title", ["making", "installing"])
def test_an_interrupted_set_up_is_started_afresh(setup_env, repository, monkeypatch, title):
    def interrupted(step, root, lock):
        run(step, root, lock)
        if step.title == title:
            raise KeyboardInterrupt

    run = setup_env.run
    with monkeypatch.context() as patch:
        patch.setattr(setup_env, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            setup_env.set_up(repository)
    assert not setup_env.is_reusable(repository)
    setup_env.set_up(repository)
    assert setup_env.is_reusable(repository)
    assert (repository / ".venv" / "installed").read_text() == "made\n"


def test_an_interrupted_deletion_leaves_nothing_that_is_reused(setup_env, repository, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    setup_env.set_up(repository)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            setup_env.remove(repository / ".venv")
    assert not setup_env.is_reusable(repository)
    setup_env.set_up(repository)
    assert setup_env.is_reusable(repository)


@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_an_environment_of_somebody_else_s_is_left_alone(setup_env, repository, tmp_path, kind):
    venv, elsewhere = repository / ".venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "folder":
        venv.mkdir()
        (venv / "pyvenv.cfg").write_text("mine")
    elif kind == "link":
        venv.symlink_to(elsewhere)
    else:
        venv.write_text("mine")
    with pytest.raises(setup_env.SetUpError, match=r"\.venv is there already, and this script did not make it"):
        setup_env.set_up(repository)
    assert not (repository / "log").exists()
    assert {"folder": (venv / "pyvenv.cfg").is_file(), "link": venv.is_symlink(), "file": venv.is_file()}[kind]


def test_an_empty_folder_is_nobody_s_environment(setup_env, repository):
    (repository / ".venv").mkdir()
    setup_env.set_up(repository)
    assert setup_env.is_reusable(repository)


def test_a_failing_step_is_reported_with_the_end_of_its_output(setup_env, repository, monkeypatch):
    failing = setup_env.Step("installing", ["sh", "-c", "echo no such package >&2; exit 3"], str)
    monkeypatch.setattr(setup_env, "steps", lambda *_: [failing])
    with pytest.raises(setup_env.SetUpError, match=r"(?s)installing failed with exit code 3.*no such package"):
        setup_env.set_up(repository)
    assert not setup_env.is_reusable(repository)


def test_too_little_disk_space_is_said_before_anything_is_touched(setup_env, repository, monkeypatch):
    setup_env.set_up(repository)
    (repository / "requirements.txt").write_text("package==2.0\n")
    monkeypatch.setattr(setup_env, "NEEDED_BYTES", 10**10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=3 * 10**9))
    with pytest.raises(setup_env.SetUpError, match=r"needs 10 GB .* there are 3\.0 GB"):
        setup_env.set_up(repository)
    assert (repository / ".venv" / "installed").exists()


def test_the_space_of_the_environment_to_be_replaced_counts_as_free(setup_env, repository, monkeypatch):
    (repository / ".venv").mkdir()
    (repository / ".venv" / "large").write_bytes(bytes(1000))
    monkeypatch.setattr(setup_env, "NEEDED_BYTES", 1500)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=500))
    setup_env.check_space(repository)


def test_the_second_of_two_set_ups_waits_and_then_reuses(setup_env, repository, monkeypatch):
    waits = threading.Event()
    monkeypatch.setattr(setup_env, "say", lambda text: waits.set() if "waiting" in text else None)
    setup_env.set_up(repository)
    with setup_env.locked(repository):
        second = threading.Thread(target=setup_env.set_up, args=(repository,))
        second.start()
        assert waits.wait(60)
        assert second.is_alive()
    second.join()
    assert set_ups_run(repository) == 1


def test_a_step_holds_the_lock_even_when_the_set_up_is_gone(setup_env, repository):
    with setup_env.locked(repository) as lock:
        step = setup_env.Step("installing", ["test", "-e", f"/dev/fd/{lock}"], str)
        setup_env.run(step, repository, lock)


def test_steps_see_no_foreign_packages_and_write_their_temporary_files_inside(setup_env, repository, monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET"):
        monkeypatch.setenv(name, "leak")
    environment = setup_env.clean_environment(repository)
    assert "leak" not in environment.values()
    assert environment["PYTHONNOUSERSITE"] == "1"
    assert Path(environment["TMPDIR"]).is_relative_to(repository / ".venv")


def test_the_running_interpreter_is_chosen_where_it_fits(setup_env):
    chosen = setup_env.find_interpreter()
    assert chosen.version == sys.version_info[:3]


def test_an_environment_made_inside_another_has_the_base_interpreter_beneath_it(setup_env, tmp_path):
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    base = setup_env.probe(sys.executable).path
    subprocess.run([base, "-I", "-m", "venv", "--without-pip", outer], check=True)
    seen_from_outer = setup_env.probe(outer / "bin" / "python")
    assert not Path(seen_from_outer.path).is_relative_to(outer)
    subprocess.run([seen_from_outer.path, "-I", "-m", "venv", "--without-pip", inner], check=True)
    shutil.rmtree(outer)
    assert setup_env.probe(inner / "bin" / "python") is not None


def test_an_interpreter_that_fits_is_found_on_path_past_a_dead_shim(setup_env, tmp_path, monkeypatch):
    old = executable(tmp_path / "python", """echo '["/base/python3.9", [3, 9, 0], true]'""")
    executable(tmp_path / "shims" / "python3.12", "exit 127")
    executable(tmp_path / "bin" / "python3.12", """echo '["/base/python3.12", [3, 12, 4], true]'""")
    monkeypatch.setattr(sys, "executable", str(old))
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "shims"), str(tmp_path / "bin")]))
    assert setup_env.find_interpreter() == ("/base/python3.12", (3, 12, 4), True)


def test_where_no_interpreter_fits_the_error_lists_what_was_found(setup_env, tmp_path, monkeypatch):
    new = executable(tmp_path / "python", """echo '["/base/python3.14", [3, 14, 0], true]'""")
    executable(tmp_path / "bin" / "python3.11", """echo '["/base/python3.11", [3, 11, 2], false]'""")
    monkeypatch.setattr(sys, "executable", str(new))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(setup_env.SetUpError, match=r"is Python 3\.14\.0; .*is Python 3\.11\.2 without ensurepip"):
        setup_env.find_interpreter()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Collecting torch==2.14.1 (from -r requirements.txt (line 12))", "torch==2.14.1"),
        ("Processing /wheels/tqdm-4.70.1-py3-none-any.whl (from -r requirements.txt (line 3))",
         "tqdm-4.70.1-py3-none-any.whl"),
        ("  Downloading torch-2.14.1-cp311-cp311-linux.whl (555.2 MB)",
         "downloading torch-2.14.1-cp311-cp311-linux.whl, 555.2 MB"),
        ("  Downloading six-1.17.0-py2.py3-none-any.whl (11 kB)", None),
        ("  Building wheel for onedl-mmcv (pyproject.toml): started", "building onedl-mmcv"),
        ("Installing collected packages: a, b, c", "unpacking 3 package(s); pip is silent meanwhile"),
        ("Successfully installed a b c", None),
    ],
)
def test_of_pips_output_the_telling_lines_are_shown(setup_env, line, shown):
    assert setup_env.pip_progress(line) == shown


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [(OSError("the disk is full"), 1, "error: the disk is full"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_a_set_up_that_fails_says_why_without_a_traceback(setup_env, monkeypatch, capsys, problem, code, said):
    def fail(root):
        raise problem

    monkeypatch.setattr(setup_env, "set_up", fail)
    monkeypatch.setattr(sys, "argv", ["setup_env.py"])
    monkeypatch.setattr(setup_env.signal, "signal", lambda *_: None)
    assert setup_env.main() == code
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_python_3_8_can_read_the_script_and_so_say_what_is_wrong():
    ast.parse((ROOT / "tools" / "setup_env.py").read_text(), feature_version=(3, 8))


def test_every_requirement_is_one_exact_version():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r'[\w-]+==[\d.]+( ; sys_platform == "linux")?', pin) for pin in pins)
    names = [pin.split("==")[0].lower() for pin in pins]
    assert len(set(names)) == len(names)
    assert "opencv-python" not in names


def test_what_exists_for_linux_alone_is_asked_for_on_linux_alone():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert line.startswith(("nvidia-", "cuda-", "triton")) == line.endswith('; sys_platform == "linux"')
