"""What a network loses as channels are set to zero, least magnitude first or at random; and in one layer alone.

python tools/analysis/ablation.py configs/shapes/ce-resnet18_shapes.py work_dirs/shapes/pretrain/epoch_6.pth

It evaluates the network some hundred times: --samples makes that shorter.
"""
import sys
from functools import partial

from ce_mm.analysis.channels import LAYERS
from ce_mm.analysis.instruments.ablation import DROP_LAYER, RUNS, ablation, table
from ce_mm.analysis.instruments.command import instrument_parser, run


def main() -> int:
    """Parse the arguments, measure and print; bad input ends with one line and status 2."""
    parser = instrument_parser(__doc__)
    parser.add_argument(
        "--layers", type=int, default=LAYERS, help="remove channels of the first so many (default: %(default)s)"
    )
    parser.add_argument(
        "--drop-layer", type=int, default=DROP_LAYER, help="the layer of the drop curve (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=RUNS, help="of each random curve (default: %(default)s)")
    args = parser.parse_args()
    return run(args, partial(ablation, layers=args.layers, drop_layer=args.drop_layer, runs=args.runs), table)


if __name__ == "__main__":
    sys.exit(main())
