"""The ratio of inhibited channels of each layer, by magnitude behind the rectifier and by gamma alone.

ce_mm inhibited configs/shapes/ce-resnet18_shapes.py work_dirs/shapes/pretrain/epoch_6.pth
"""
from ce_mm.analysis.instruments.command import instrument_parser, run
from ce_mm.choices import LAYERS, THRESHOLD


def main() -> int:
    """Parse the arguments, measure, and say what was found."""
    parser = instrument_parser(__doc__)
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="a channel below it is inhibited (default: %(default)s)"
    )
    parser.add_argument(
        "--layers", type=int, default=LAYERS, help="average over the first so many (default: %(default)s)"
    )
    return run(parser, "inhibited_channels")
