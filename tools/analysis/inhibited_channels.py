"""The ratio of inhibited channels of each layer, by magnitude behind the rectifier and by gamma alone.

python tools/analysis/inhibited_channels.py configs/shapes/ce-resnet18_shapes.py work_dirs/shapes/pretrain/epoch_6.pth
"""
import sys
from functools import partial

from ce_mm.analysis.channels import LAYERS, THRESHOLD
from ce_mm.analysis.instruments.command import instrument_parser, run
from ce_mm.analysis.instruments.inhibited_channels import inhibited_channels, table


def main() -> int:
    """Parse the arguments, measure and print; bad input ends with one line and status 2."""
    parser = instrument_parser(__doc__)
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="a channel below it is inhibited (default: %(default)s)"
    )
    parser.add_argument(
        "--layers", type=int, default=LAYERS, help="average over the first so many (default: %(default)s)"
    )
    args = parser.parse_args()
    return run(args, partial(inhibited_channels, threshold=args.threshold, layers=args.layers), table)


if __name__ == "__main__":
    sys.exit(main())
