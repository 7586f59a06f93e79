"""The share of beta <= 0 of each norm, and lambda of each CE layer; no data are needed.

ce_mm norms configs/shapes/ce-resnet18_shapes.py work_dirs/shapes/pretrain/epoch_6.pth
"""
from ce_mm.analysis.instruments.command import instrument_parser, run


def main() -> int:
    """Parse the arguments, measure, and say what was found."""
    return run(instrument_parser(__doc__, with_data=False), "norm_parameters")
