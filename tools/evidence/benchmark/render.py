"""Write pages and pictures of benchmarks again, from their records: python -m tools.evidence.benchmark.render DIR."""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.evidence.benchmark import int8, latency, network, op, records, steps

BENCHMARKS = [module.BENCHMARK for module in (op, network, steps, latency, int8)]


def main(arguments: Sequence[str]) -> int:
    """Parse the arguments and write; bad input ends with one line and status 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with records of benchmarks, such as docs/benchmark")
    args = parser.parse_args(arguments)
    try:
        found = {each: records.read(args.folder, each) for each in BENCHMARKS}
        if not any(found.values()):
            raise ValueError(f"{args.folder}: there is none of {', '.join(f'{each.name}.json' for each in BENCHMARKS)}")
        for benchmark, runs in found.items():
            if runs:
                records.write(args.folder, benchmark, runs)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
