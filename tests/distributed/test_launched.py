"""Two processes under tools/dist_train.sh without a GPU: training, the death of one, and testing."""
import signal
import subprocess

import pytest
from dead_rank import outcome, send
from launched import dist_script, environment, free_port


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def result(folder):
    return outcome(folder, 2, send(signal.SIGKILL, rank=1))


def test_the_death_of_one_process_ends_the_training_with_an_error(result):
    assert result.codes == (1,)
    assert result.errors == ("(exitcode: -9) local_rank: 1",)


def test_its_last_checkpoint_is_tested_by_two_processes(result, folder):
    done = subprocess.run(
        [*dist_script("test"), folder / "config.py", folder / "work_dir" / "epoch_1.pth", "2"],
        env=environment(PORT=str(free_port())), cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy/top1" in done.stdout + done.stderr
