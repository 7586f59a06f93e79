"""Run the libraries' own tests with and without ``import ce_mm``, and compare them test by test.

    python -m tools.evidence.upstream_suites CHECKOUTS                     # all suites, as a Markdown table
    python -m tools.evidence.upstream_suites CHECKOUTS hooks runner cnn    # some

CHECKOUTS is a folder with the sources ``mmengine/``, ``mmcv/``, ``mmdet/`` and ``mmpretrain/``. Their ``tests`` (and
mmdet's ``configs``) come from there; the libraries that are tested are the installed ones. A test that passes without
ce_mm and fails with it is run with it once more, because a few of them rest on chance. Beside the libraries it needs
pytest-xdist, which starts a new worker where a test crashes or hangs, and parameterized, which mmdet's tests import.

pytest loads this file as a plugin as well: it then records the outcomes.
"""
import argparse
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

OUTCOMES = "UPSTREAM_SUITES_OUTCOMES"
TIMEOUT_S = 600


class Suite(NamedTuple):
    """Folders and files of one library's tests."""

    library: str
    paths: list[str]


SUITES = {
    "hooks": Suite("mmengine", ["test_hooks"]),
    "runner": Suite("mmengine", ["test_runner"]),
    "model": Suite("mmengine", ["test_model"]),
    "infer": Suite("mmengine", ["test_infer"]),
    "analysis": Suite("mmengine", ["test_analysis"]),
    "config": Suite("mmengine", ["test_config", "test_registry"]),
    "dist": Suite("mmengine", ["test_dist"]),
    "fileio": Suite("mmengine", ["test_fileio"]),
    "optim": Suite("mmengine", ["test_optim"]),
    "strategies": Suite("mmengine", ["test_strategies"]),
    "utils": Suite("mmengine", ["test_utils", "test_logging", "test_evaluator", "test_visualizer"]),
    "cnn": Suite("mmcv", ["test_cnn", "test_utils"]),
    "ops": Suite("mmcv", ["test_ops"]),
    "detectors": Suite("mmdet", ["test_models/test_detectors"]),
    "heads": Suite("mmdet", ["test_models/test_dense_heads", "test_models/test_roi_heads"]),
    "necks": Suite("mmdet", ["test_models/test_necks", "test_models/test_layers"]),
    "detector-backbones": Suite("mmdet", ["test_models/test_backbones"]),
    "detector-losses": Suite("mmdet", ["test_models/test_losses", "test_models/test_task_modules"]),
    "detector-engine": Suite("mmdet", ["test_engine", "test_evaluation", "test_structures"]),
    "classifier-backbones": Suite("mmpretrain", ["test_models/test_backbones"]),
    "classifiers": Suite("mmpretrain", [f"test_models/test_{name}.py" for name in (
        "classifiers", "heads", "losses", "models", "necks", "tta")]),
    "classifier-engine": Suite("mmpretrain", ["test_engine", "test_evaluation"]),
}


def main() -> int:
    """Print a row for each suite; 1 if any test passes without ce_mm alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join(SUITES)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.suites) - set(SUITES):
        parser.error(f"no suite {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")

    print("| Library | Suite | Tests | Pass without | Pass with | Pass with only | Pass without, fail with |")
    print("|---|---|--:|--:|--:|--:|---|")
    worse = False
    for name in args.suites or SUITES:
        library, paths = SUITES[name]
        with tempfile.TemporaryDirectory() as folder:
            lay_out(library, args.checkouts, Path(folder))
            run = functools.partial(outcomes, Path(folder))
            tests = [f"tests/{path}" for path in paths]
            without, with_ce_mm = run(tests), run(tests, "-p", "ce_mm")
            lost = passed(without) - passed(with_ce_mm)
            if lost:
                lost -= passed(run(sorted(lost), "-p", "ce_mm"))
        gained = passed(with_ce_mm) - passed(without)
        figures = [len(without | with_ce_mm), len(passed(without)), len(passed(with_ce_mm)), len(gained)]
        print("|", " | ".join([library, name, *map(str, figures), ", ".join(sorted(lost)) or "none"]), "|", flush=True)
        worse |= bool(lost)
    return int(worse)


def lay_out(library: str, checkouts: Path, folder: Path) -> None:
    """Put the checkout's tests beside the installed package, as the tests expect it, without the checkout's package."""
    for part in ("tests", "configs"):
        if (checkouts / library / part).is_dir():
            shutil.copytree(checkouts / library / part, folder / part)
    (folder / library).symlink_to(Path(importlib.util.find_spec(library).origin).parent)


def outcomes(folder: Path, tests: Iterable[str], *options: str) -> dict[str, bool]:
    """Run tests in the folder; whether each passes, by pytest's name of it. Skipped tests are left out."""
    record = folder / "outcomes"
    record.write_text("")
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Without what a pytest around this one says of itself.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "tools.evidence.upstream_suites", "-p", "no:cacheprovider",
         "-n", "1", "-q", "--tb=native", "--continue-on-collection-errors", "-o", f"faulthandler_timeout={TIMEOUT_S}",
         "-o", "faulthandler_exit_on_timeout=true", *tests],
        cwd=folder, env={**environment, "PYTHONPATH": path, OUTCOMES: str(record)}, stdout=sys.stderr,
    )
    if run.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with {run.returncode} before all tests had run; its output says why")
    results: dict[str, bool] = {}
    for line in record.read_text().splitlines():
        test, passes = json.loads(line)
        results[test] = passes and results.get(test, True)  # set-up, call and teardown all count
    return results


def passed(results: dict[str, bool]) -> set[str]:
    """The names of the tests that passed."""
    return {test for test, passes in results.items() if passes}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of a test's call, and of a set-up or teardown that fails (called by pytest)."""
    in_worker = "PYTEST_XDIST_WORKER" in os.environ  # which hands its reports on to the main process
    if not in_worker and (report.failed or (report.when == "call" and report.passed)):
        with open(os.environ[OUTCOMES], "a") as record:
            print(json.dumps([report.nodeid, report.passed]), file=record)


if __name__ == "__main__":
    sys.exit(main())
