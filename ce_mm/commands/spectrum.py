"""How unequal the channels of a group are in front of CE and behind it: the spread of the covariance's eigenvalues.

ce_mm spectrum configs/shapes/ce-resnet18_shapes.py work_dirs/shapes/pretrain/epoch_6.pth
"""
from ce_mm.analysis.instruments.command import instrument_parser, run
from ce_mm.choices import GROUP_SIZE


def main() -> int:
    """Parse the arguments, measure, and say what was found."""
    parser = instrument_parser(__doc__)
    parser.add_argument(
        "--group-size", type=int, default=GROUP_SIZE, help="for norms without CE's groups (default: %(default)s)"
    )
    return run(parser, "spectrum")
