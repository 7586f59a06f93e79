"""What the other processes of a training do when one of them dies, hangs, or cannot be reached any more.

python -m tools.evidence.reliability.dead_rank work_dirs/dead_rank --out docs/reliability

The cases on two hosts need root and iproute2; without them they are left out.
"""
import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ce_mm.files import check_folder
from tools.evidence import pages
from tools.evidence.reliability.conditions import conditions
from tools.evidence.reliability.launched import Host, Training, kill
from tools.evidence.reliability.namespaces import NoNamespacesError, cut_the_cable, two_hosts

STEPS = 5
"""Taken before anything happens; an epoch, after which a checkpoint is saved, has 4 or less."""
TIMEOUT = 20
"""env_cfg.dist_cfg.timeout of the cases, in seconds."""

Harm = Callable[[Training], set[int]]
"""Done to a training that runs; returns the ids of its victims: the dead, the hanging, those that wait for them."""

PAGE = """# When a process of a training dies or hangs

    python -m tools.evidence.reliability.dead_rank work_dirs/dead_rank --out docs/reliability

A small CE-ResNet-18 trains under `tools/dist_train.sh`, with `env_cfg.dist_cfg.timeout` = {timeout} s. After {steps}
steps something happens to one process or host, and a clock starts. "Noticed" is when the first host's log tells of an
error, "workers" and "launchers" when the last of them had ended, without the process that was hurt.

{table}

What notices. A death on the same host: the launcher, which stops the others. A death on another host: the closed
connection; the data-loading processes of the dead one hold it open until they see, looking every 5 s, that they
are orphans. A process that hangs, or a host that is not reached any more: nothing but a collective operation that has
waited for `timeout` seconds.

What ends. A worker that has noticed still takes some seconds to end, more on a busy machine, and then its launcher some
more: where something hangs, the others end some seconds after `timeout`. A launcher kills a process of its host that
does not answer 30 seconds after it was told to end. A launcher knows of its own host alone: a host all of whose
processes hang waits for ever, while the others have ended with an error. End it by hand, or by Slurm:
`tools/slurm_train.sh` asks for that with `--kill-on-bad-exit`.

The timeout must be longer than what one process does alone while the others wait, such as evaluating a whole data
set.{left_out}

{conditions}"""

LEFT_OUT = "\n\nThe cases on two hosts were left out: {reason}."


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        noticed: seconds until the first host's log told of an error.
        workers: seconds until the last healthy worker had ended.
        launchers: seconds until the launchers had ended.
        codes: the exit code of each host's launcher, None where it still waits.
        errors: the first error in each host's log.
    """

    noticed: float
    workers: float
    launchers: float
    codes: tuple[int | None, ...]
    errors: tuple[str, ...]


def send(number: signal.Signals, rank: int) -> Harm:
    """A worker gets a signal."""

    def harm(training: Training) -> set[int]:
        pid = training.workers()[rank]
        os.kill(pid, number)
        return {pid}

    return harm


def hang_of_the_second_host(training: Training) -> set[int]:
    """Its only worker gets SIGSTOP; its launcher has nothing else to wait for."""
    return {training.launchers[1].pid, *send(signal.SIGSTOP, rank=1)(training)}


def power_failure(training: Training) -> set[int]:
    """Everything on the second host is gone at once."""
    gone = training.everything_on(host=1)
    for pid in gone:
        kill(pid)
    return set(gone)


def broken_cable(training: Training) -> set[int]:
    """The hosts reach each other no more."""
    cut_the_cable()
    return set()


ONE_HOST = (
    ("one of two killed", 2, send(signal.SIGKILL, rank=1)),
    ("the first of two killed", 2, send(signal.SIGKILL, rank=0)),
    ("one of four killed", 4, send(signal.SIGKILL, rank=2)),
    ("one of two hangs", 2, send(signal.SIGSTOP, rank=1)),
    ("one of four hangs", 4, send(signal.SIGSTOP, rank=3)),
)
TWO_HOSTS = (
    ("two hosts, one process each: that of the second killed", 1, send(signal.SIGKILL, rank=1)),
    ("that of the second hangs", 1, hang_of_the_second_host),
    ("power failure of the second host", 1, power_failure),
    ("the cable between them broken", 1, broken_cable),
)


def outcome(
    folder: Path, processes: int, harm: Harm, hosts: Sequence[Host] = (Host(),), timeout: int = TIMEOUT
) -> Outcome:
    """Start a training, let it go some steps, do it harm, and wait for its end.

    Args:
        folder: for data, config and logs.
        processes: on each host.
        harm: what is done.
        hosts: where it runs.
        timeout: env_cfg.dist_cfg.timeout, in seconds.

    Raises:
        TimeoutError: it did not end.
    """
    with Training(folder, processes, hosts, timeout=timeout) as training:
        training.wait_for_steps(STEPS)
        workers, launchers = set(training.workers().values()), {launcher.pid for launcher in training.launchers}
        victims = harm(training)
        noticed = training.wait_until_noticed()
        until_workers = noticed + training.wait_for_the_end(workers - victims)
        lost = victims if victims & launchers else set()  # there is no launcher to end these
        until_launchers = until_workers + training.wait_for_the_end(launchers - lost)
        training.wait_for_the_end(workers - lost)
        return Outcome(
            noticed, until_workers, until_launchers,
            tuple(launcher.returncode for launcher in training.launchers),
            tuple(_first_error(log.read_text()) for log in training.logs),
        )  # fmt: skip


def _first_error(log: str) -> str:
    said, seen = r"^\[rank\d+\]: (?:\w+\.)*(\w*Error: .*)$", r"failed (\(exitcode: -?\d+\) local_rank: \d+)"
    found = re.search(f"{said}|{seen}", log, re.M)
    text = "none" if found is None else found[1] or found[2]
    # Without places in PyTorch's sources, addresses, and advice.
    return re.sub(r"\[/\S+\] ?| \[[\d.]+\]:\d+", "", text).split(". ")[0]


def row(name: str, result: Outcome) -> list[str]:
    """A row of the page's table."""
    codes = ", ".join("waits" if code is None else str(code) for code in result.codes)
    errors = "; ".join(result.errors)
    return [name, *(f"{time:.1f} s" for time in (result.noticed, result.workers, result.launchers)), codes, errors]


def main() -> int:
    """Run all cases and write the page; returns 1 if a training did not end in an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for data, configs and logs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the page")
    args = parser.parse_args()
    try:
        check_folder(args.out, ["dead_rank.md"])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.folder.mkdir(parents=True, exist_ok=True)

    rows, left_out, failed = [], "", False
    with tqdm(total=len(ONE_HOST + TWO_HOSTS), unit="case") as progress:

        def run(cases: Sequence[tuple[str, int, Harm]], hosts: Sequence[Host]) -> None:
            nonlocal failed
            for name, processes, harm in cases:
                result = outcome(args.folder, processes, harm, hosts)
                rows.append(row(name, result))
                failed |= 0 in result.codes
                progress.update()

        run(ONE_HOST, (Host(),))
        try:
            for case in TWO_HOSTS:
                with two_hosts() as hosts:
                    run([case], hosts)
        except NoNamespacesError as error:
            left_out = LEFT_OUT.format(reason=error)
    headings = ["what happens", "noticed", "workers", "launchers", "exit codes", "first error of each host"]
    text = PAGE.format(
        steps=STEPS, timeout=TIMEOUT, table=pages.table(headings, rows, words=(0, 4, 5)), left_out=left_out,
        conditions=conditions(),
    )  # fmt: skip
    pages.write(args.out, "dead_rank", text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
