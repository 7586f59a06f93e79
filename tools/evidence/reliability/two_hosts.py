"""The same small training twice, by two processes on two hosts and on one: do all end with the same weights?

python -m tools.evidence.reliability.two_hosts work_dirs/two_hosts --out docs/reliability

The two hosts are two network namespaces of this machine, which need root and iproute2.
"""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ce_mm.files import check_folder
from tools.evidence import pages
from tools.evidence.reliability.conditions import conditions
from tools.evidence.reliability.launched import Host, Training
from tools.evidence.reliability.namespaces import NoNamespacesError, two_hosts

EPOCHS = 3
PAGE = """# Training on two hosts

    python -m tools.evidence.reliability.two_hosts work_dirs/two_hosts --out docs/reliability

Two network namespaces, joined by a virtual cable, stand for two hosts that see nothing of each other but what goes over
it. On each of them, with the rank of the host, the address of the first and the name of the network interface:

    NNODES=2 NODE_RANK=... MASTER_ADDR=... PORT=... GLOO_SOCKET_IFNAME=... bash tools/dist_train.sh CONFIG 1

A small CE-ResNet-18 trains for {epochs} epochs of 4 steps; `SyncBuffersHook` averages the running averages. The
same with both processes on one host, for comparison. The beginning of SHA-256 of all weights, in the end:

{table}

{verdict}

{conditions}"""


def digests(folder: Path, processes: int, hosts: Sequence[Host]) -> list[dict[str, str]]:
    """Train and return what each rank ends with: SHA-256 of its parameters and of its buffers.

    Args:
        folder: for data, config and logs.
        processes: on each host.
        hosts: where they run.

    Raises:
        RuntimeError: a host's training failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Training(folder, processes, hosts, epochs=EPOCHS) as training:
        training.wait_for_the_end([launcher.pid for launcher in training.launchers])
        for launcher, log in zip(training.launchers, training.logs, strict=True):
            if launcher.returncode:
                raise RuntimeError(f"a training ended with {launcher.returncode}; see {log}")
        files = [training.work_dir / f"weights_rank{rank}.txt" for rank in range(processes * len(hosts))]
        return [dict(line.split() for line in file.read_text().splitlines()) for file in files]


def main() -> int:
    """Train both ways and write the page; returns 1 if the weights differ, 2 if there can be no two hosts here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for data, configs and logs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the page")
    args = parser.parse_args()
    try:
        check_folder(args.out, ["two_hosts.md"])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with two_hosts() as hosts:
            apart = digests(args.folder / "apart", 1, hosts)
    except NoNamespacesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    together = digests(args.folder / "together", 2, (Host(),))

    rows = [
        [where, str(rank), *(f"`{result[part][:16]}`" for part in ("parameters", "buffers"))]
        for where, results in (("two hosts", apart), ("one host", together))
        for rank, result in enumerate(results)
    ]
    table = pages.table(["", "rank", "parameters", "running averages"], rows, words=range(4))
    same = all(result == apart[0] for result in apart + together)
    verdict = "All four are the same, to the last bit." if same else "**They differ.**"
    text = PAGE.format(epochs=EPOCHS, table=table, verdict=verdict, conditions=conditions())
    pages.write(args.out, "two_hosts", text)
    print(verdict, file=sys.stderr)
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
