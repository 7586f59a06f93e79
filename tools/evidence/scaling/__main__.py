"""ResNet-50 with BN, SyncBN, CE and SyncCE on 8 to 1024 GPUs, on paper: python -m tools.evidence.scaling --out docs.

Counts what a training step sends between processes (two of them, on the CPU, in a minute or two), and estimates from
that, from the speed of one GPU and from the latency and bandwidth of its network how long steps take. Writes
scaling.json, scaling.md and scaling.png. Every assumption is an option.
"""
import argparse
import shlex
import sys
from dataclasses import fields
from pathlib import Path

from ce_mm.files import check_folder
from tools.evidence.scaling import message_time
from tools.evidence.scaling.model import Cluster
from tools.evidence.scaling.page import (
    CHOSEN,
    FILES,
    PUBLISHED_SPEED,
    PUBLISHED_WHERE,
    Assumptions,
    count,
    read_benchmark,
    write,
)

BENCHMARK = Path(__file__).resolve().parents[3] / "docs" / "benchmark" / "network_cpu.json"


def main() -> int:
    """Parse the arguments, count, estimate and write; bad input ends with one line and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the numbers, the page and the picture")
    parser.add_argument(
        "--benchmark", type=Path, default=BENCHMARK, help="what tools.evidence.benchmark.network wrote (default: docs')"
    )
    parser.add_argument("--pictures-per-second", type=float, help=f"of one GPU, with BN (default: {PUBLISHED_SPEED})")
    parser.add_argument("--ce-ratio", type=float, help="computing with CE over that with BN (default: the benchmark's)")
    parser.add_argument("--batch", type=int, default=32, help="pictures on each GPU (default: %(default)s)")
    for each in fields(Cluster):
        meta = each.metadata
        what = ", ".join(filter(None, (meta["what"], meta["unit_name"])))
        parser.add_argument(
            f"--{each.name.replace('_', '-')}", type=type(each.default),
            help=f"{what} (default: {each.default / meta['unit']:g})",
        )  # fmt: skip
    args = parser.parse_args()
    try:
        share, ratio = read_benchmark(args.benchmark)
        given = {each.name: getattr(args, each.name) for each in fields(Cluster)}
        units = {each.name: each.metadata["unit"] for each in fields(Cluster)}
        assumptions = Assumptions(
            pictures_per_second=PUBLISHED_SPEED if args.pictures_per_second is None else args.pictures_per_second,
            backward_share=share,
            ce_ratio=ratio if args.ce_ratio is None else args.ce_ratio,
            batch=args.batch,
            cluster=Cluster(**{name: value * units[name] for name, value in given.items() if value is not None}),
        )
        measured = f"measured on a CPU, {args.benchmark.name}; on a GPU unknown"
        sources = dict(
            pictures_per_second=PUBLISHED_WHERE if args.pictures_per_second is None else CHOSEN,
            backward_share=measured,
            ce_ratio=measured if args.ce_ratio is None else CHOSEN,
        )
        check_folder(args.out, FILES, [args.benchmark])
        line = message_time.measure()
        command = f"python -m tools.evidence.scaling {shlex.join(sys.argv[1:])}"
        write(count(), assumptions, sources, line, args.out, command)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.out / "scaling.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
