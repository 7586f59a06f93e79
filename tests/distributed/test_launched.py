"""Two processes under tools/dist_train.sh without a GPU: training, a death, testing, and what is left behind."""
import signal
import subprocess

import pytest

from tools.evidence.reliability import launched
from tools.evidence.reliability.dead_rank import outcome, send
from tools.evidence.reliability.launched import PATIENCE, Host, Training, dist_script, environment, free_port


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def result(folder):
    return outcome(folder, 2, send(signal.SIGKILL, rank=1), timeout=PATIENCE)


def test_the_death_of_one_process_ends_the_training_with_an_error(result):
    assert result.codes == (1,)
    assert result.errors[0] != "none"  # the launcher and the other process both notice; either may say so first


def test_its_last_checkpoint_is_tested_by_two_processes(result, folder):
    last = (folder / "work_dir" / "last_checkpoint").read_text()
    done = subprocess.run(
        [*dist_script("test"), folder / "launched_training.py", last, "2"],
        env=environment(PORT=str(free_port())), cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy/top1" in done.stdout + done.stderr


@pytest.fixture
def begin(monkeypatch, tmp_path):
    """Makes a training without data, whose launchers run a line of shell instead."""
    monkeypatch.setattr(launched, "make_shapes", lambda folder, *_, **__: folder)

    def make(line, *hosts):
        monkeypatch.setattr(launched, "dist_script", lambda task: ["bash", "-c", line])
        return Training(tmp_path, 1, hosts)

    return make


def test_a_host_that_cannot_start_ends_the_others(begin):
    training = begin("sleep 100", Host(), Host(("no-such-program",)))
    with pytest.raises(FileNotFoundError, match="no-such-program"), training:
        pass
    assert [launcher.returncode for launcher in training.launchers] == [-signal.SIGKILL]


def test_workers_whose_launcher_has_died_are_ended_too(begin):
    with begin("setsid sleep 100 & kill -9 $$", Host()) as training:
        training.launchers[0].wait()
        assert training.everything_on(0)
    assert not training.everything_on(0)
