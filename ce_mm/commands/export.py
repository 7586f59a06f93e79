"""Write a trained network for another runtime: ONNX, TorchScript, or PyTorch's exported program.

ce_mm export configs/shapes/ce-resnet18_shapes.py work_dirs/shapes/pretrain/epoch_6.pth \\
    --format onnx --out ce-resnet18.onnx

The file takes RGB pictures of any size, float32 (batch, 3, height, width) from 0 to 255, and normalises them itself; a
classifier gives scores and logits, a backbone its maps. Before it takes its name it is held against the model in
PyTorch, on 20 random batches, in a process of its own that can import neither this package nor OpenMMLab. Exit code: 0,
or 2 where it cannot be written. See docs/deployment.md.
"""
import argparse
import sys
from pathlib import Path

from ce_mm.choices import EXPORTED
from ce_mm.compat.requirements import MissingRequirementError


def main() -> int:
    """Parse the arguments, export, and say what the file takes and gives; bad input ends with one line and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of a classifier; with --backbone, of a detector too")
    parser.add_argument("checkpoint", help="weights that fit it")
    parser.add_argument("--format", required=True, choices=EXPORTED)
    suffixes = ", ".join(f"{suffix} for {name}" for name, suffix in EXPORTED.items())
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=f"file to write: {suffixes}")
    parser.add_argument("--backbone", action="store_true", help="the backbone alone")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    args = parser.parse_args()
    try:
        from ce_mm.export import export
        from ce_mm.export.check import BATCHES, INPUTS, SIZES

        written = export(args.config, args.checkpoint, args.format, args.out, args.backbone, args.overwrite)
    except (ValueError, OSError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    for name, value in written.metadata.items():
        print(f"{name}: {value}")
    print(
        f"\nWritten to {written.path}. On {INPUTS} random inputs of {len(SIZES)} sizes and {len(BATCHES)} batch sizes, "
        f"it differs from the model by at most {written.difference:.1e} of the largest output."
    )
    return 0
