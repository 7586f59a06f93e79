"""A real training, killed at random and while it saves, ends bit-identical.

tools.evidence.reliability.kill_and_resume does the same twenty times.
"""
import pytest

from tools.evidence.reliability.trials import HALF_WRITTEN, IN_A_STEP, pairs, run_trials, same


def test_three_kills_in_a_row_change_nothing(tmp_path):
    outcome = run_trials([IN_A_STEP, HALF_WRITTEN, 6], tmp_path)

    epochs = [int(kill.resumes_from.removeprefix("epoch_").removesuffix(".pth")) for kill in outcome.kills]
    assert epochs == sorted(epochs) and epochs[0] >= 1
    _, seen, named = outcome.kills
    assert len(seen.left_half_written) <= 1  # none, where it was in place before the kill came
    assert named.place == "fsync .last_checkpoint.tmp"
    assert outcome.values_compared > 500
    assert outcome.differences == []
    assert outcome.checkpoints_read >= 8  # one of each epoch


def test_two_ranks_that_are_killed_together_change_nothing(tmp_path):
    alone = ("train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False")

    outcome = run_trials([0], tmp_path, alone, ranks=2)

    assert outcome.kills[0].place == "write .epoch_2.pth.tmp"
    assert outcome.differences == []


@pytest.mark.parametrize(
    ("ours", "theirs"), [(1, 2), (1, 1.0), (dict(a=1), dict(a=1, b=2)), ([1, 2], [1]), (dict(a=[1]), dict(a=[2]))]
)
def test_the_comparison_finds_what_differs(ours, theirs):
    assert any(not same(a, b) for _, a, b in pairs("", ours, theirs))
