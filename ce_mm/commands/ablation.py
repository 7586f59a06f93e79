"""What a network loses as channels are set to zero, least magnitude first or at random; and in one layer alone.

ce_mm ablation configs/shapes/ce-resnet18_shapes.py work_dirs/shapes/pretrain/epoch_6.pth

It evaluates the network some hundred times: --samples makes that shorter.
"""
from ce_mm.analysis.instruments.command import instrument_parser, run
from ce_mm.choices import LAYERS


def main() -> int:
    """Parse the arguments, measure, and say what was found."""
    parser = instrument_parser(__doc__)
    parser.add_argument(
        "--layers", type=int, default=LAYERS, help="remove channels of the first so many (default: %(default)s)"
    )
    # The paper drops channels of the third layer's output, five times.
    parser.add_argument("--drop-layer", type=int, default=3, help="the layer of the drop curve (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each random curve (default: %(default)s)")
    return run(parser, "ablation")
