"""ResNet-50 with BN, SyncBN, CE and SyncCE on 8 to 1024 GPUs, on paper: python -m tools.evidence.scaling --out docs.

Counts what a training step sends between processes, and estimates from that, from the speed of one GPU and from the
latency and bandwidth of its network how long steps take: a minute or two. Writes scaling.json, scaling.md, scaling.png.
"""
import argparse
import sys
from pathlib import Path

from ce_mm.files import check_folder
from tools.evidence.scaling.page import FILES, count, read_benchmark, write

BENCHMARK = Path(__file__).resolve().parents[3] / "docs" / "benchmark" / "network.json"


def main() -> int:
    """Parse the arguments, count, estimate and write; bad input ends with one line and status 2."""
    parser = argparse.ArgumentParser(
        "scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the numbers, the page and the picture")
    args = parser.parse_args()
    try:
        check_folder(args.out, FILES)
        write(count(), read_benchmark(BENCHMARK), args.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.out / "scaling.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
