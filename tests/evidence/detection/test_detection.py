"""The study's chains, as commands, and its page; the commands themselves are tested where they belong."""
import json
import time

import pytest

from tools.evidence.detection import running
from tools.evidence.detection.report import FILES, differences, interval, write_report
from tools.evidence.detection.running import EVALUATED, chains, read_results, run_all


def options(command):
    return dict(part.split("=") for part in command if "=" in part)


def test_a_chain_pretrains_trains_from_that_and_evaluates(tmp_path):
    (chain,) = (chain for chain in chains(tmp_path, 2, [3]) if (chain.norm, chain.seed) == ("BN", 1))
    pretrain, train, *evaluate = chain.commands()
    assert [command[0] for command in (pretrain, train, *evaluate)] == ["train", "train", *["test", "eval"] * 2]
    assert options(pretrain) == {"randomness.seed": "1"}
    assert options(train)["model.backbone.init_cfg.checkpoint"] == str(chain.folder / "pretrain/epoch_6.pth")
    assert options(train)["train_cfg.max_epochs"] == options(train)["param_scheduler.1.T_max"] == "3"
    for pictures, test, measure in zip((80, 1000), evaluate[::2], evaluate[1::2], strict=True):
        assert str(chain.detector(3) / "epoch_3.pth") in test
        assert test[test.index("--out") + 1] in measure
        assert options(test)["test_evaluator.ann_file"] in measure
        assert measure[-1] == str(chain.detector(3) / f"metrics-{pictures}.json")


def finish(chain, epochs, box, mask):
    """What the commands leave of a detector."""
    folder = chain.detector(epochs)
    (folder / "now/vis_data").mkdir(parents=True)
    (folder / "last_checkpoint").write_text(str(folder / f"epoch_{epochs}.pth"))
    metrics = {"coco/bbox_mAP": box, "coco/segm_mAP": mask}
    for pictures in EVALUATED:
        (folder / f"metrics-{pictures}.json").write_text(json.dumps(metrics))
    rows = [dict(step=10, loss=1.0), metrics | dict(step=1)]
    (folder / "now/vis_data/scalars.json").write_text("\n".join(map(json.dumps, rows)))


def test_what_is_finished_is_not_done_again(tmp_path):
    chain = chains(tmp_path, 1, [3, 9])[0]
    (chain.folder / "pretrain").mkdir(parents=True)
    (chain.folder / "pretrain/last_checkpoint").write_text("somewhere/epoch_6.pth")
    finish(chain, 3, 0.5, 0.4)
    assert [command[0] for command in chain.commands()] == ["train", *["test", "eval"] * 2]
    assert all(str(chain.detector(9)) in " ".join(command) for command in chain.commands())


def test_a_run_goes_through_all_chains_and_stops_when_time_is_up(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(running, "_call", lambda command, *rest: calls.append(command) or len(calls) < 10)
    assert run_all(chains(tmp_path, 1, [3]), 1, 10) == 1
    chain = ["train", "train", *["test", "eval"] * 2]
    assert [command[0] for command in calls] == ["shapes", "shapes", *chain, "train", "train"]


def test_a_command_that_fails_is_named_with_its_log(tmp_path):
    with pytest.raises(ValueError, match=r"`ce_mm eval absent\.json absent\.pkl` failed with exit code 2; its log"):
        running._call(["eval", "absent.json", "absent.pkl"], tmp_path / "log.txt", 1, lambda: False)
    assert "absent.json" in (tmp_path / "log.txt").read_text()


def test_a_command_is_ended_when_the_time_is_over(tmp_path):
    log = tmp_path / "log.txt"
    answers = iter([False, True])
    assert not running._call(["train", "absent.py"], log, 1, lambda: next(answers))
    assert not running._call(["train", "absent.py"], tmp_path / "never.txt", 1, lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_what_ends_the_run_ends_its_trainings(tmp_path, monkeypatch):
    seen = []

    def endless(command, log, threads, over):
        if command[0] == "shapes":
            return True
        seen.append("begun")
        while not over():
            time.sleep(0.01)
        seen.append("ended")
        return False

    def interrupted(*_):
        while "begun" not in seen:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_call", endless)
    monkeypatch.setattr(running, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(chains(tmp_path, 1, [3]), 1, 10)
    assert seen == ["begun", "ended"]


@pytest.mark.parametrize(("seeds", "epochs"), [(0, [3]), (1, []), (1, [0])])
def test_no_seed_and_no_epoch_are_refused(tmp_path, seeds, epochs):
    with pytest.raises(ValueError, match="at least one seed"):
        chains(tmp_path, seeds, epochs)


@pytest.fixture
def results(tmp_path):
    runs = chains(tmp_path, 3, [3])
    boxes = dict(BN=(0.60, 0.62, 0.64), CE=(0.61, 0.65, 0.66))
    for chain in runs:
        if (chain.norm, chain.seed) != ("BN", 2):
            finish(chain, 3, boxes[chain.norm][chain.seed], 0.5)
    return read_results(runs)


def test_seeds_that_both_norms_have_are_read(results):
    assert {norm: [run["seed"] for run in runs] for norm, runs in results["3"].items()} == dict(BN=[0, 1], CE=[0, 1])
    assert results["3"]["CE"][1]["curve"] == [dict(box=0.65, mask=0.5)]
    assert differences(results["3"], 1000, "box") == pytest.approx([1, 3])


def test_the_interval_is_student_s():
    assert interval([1, 3]) == pytest.approx(12.706, abs=1e-3)  # t of one degree of freedom, spread sqrt(2), two values


def test_three_seeds_have_an_interval(results, tmp_path):
    three = {"3": {norm: [*runs, runs[0]] for norm, runs in results["3"].items()}}
    write_report(three, tmp_path / "out", "the command")
    assert "+1.7 ± 2.9 |" in (tmp_path / "out/results.md").read_text()


def test_the_page_has_means_and_differences_by_seed(results, tmp_path):
    write_report(results, tmp_path / "out", "the command")
    page = (tmp_path / "out/results.md").read_text()
    for pictures in (80, 1000):
        assert f"| 3 | {pictures} | box | 2 | 61.0 ± 1.4 | 63.0 ± 2.8 | +2.0 |" in page
        assert f"| 3 | {pictures} | box | +1.0 | +3.0 |" in page
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
