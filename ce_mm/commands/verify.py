"""Look through a checkpoint: whole, finite values, plausible buffers, names, shapes and types of a config's model.

ce_mm verify work_dirs/ce-resnet50/epoch_100.pth configs/imagenet/ce-resnet50_8xb32_in1k.py

CONFIG is of a classifier, a detector or a backbone; weights of a backbone alone are held against the backbone. A file
is whole if the checksums in it say so, and the digits of its hash if its name has them (name-1a2b3c4d.pth).

Prints one line for each finding. Exit code: 0 nothing found, 1 findings, 2 the checkpoint or the config cannot be read.
"""
import argparse
import sys
from pathlib import Path

from ce_mm.compat.requirements import MissingRequirementError, require


def main() -> int:
    """Parse the arguments, verify, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="as torch.save, mmengine or safetensors wrote it")
    parser.add_argument("config", nargs="?", help="config of the model; without it, values alone are looked at")
    args = parser.parse_args()
    try:
        require("mmengine", "mmcv", "mmpretrain")
        from ce_mm.checkpoints.publishing import is_misnamed
        from ce_mm.checkpoints.reading import read_checkpoint, weights_of
        from ce_mm.checkpoints.verify import Finding, verify
        from ce_mm.launching.config import read_config

        checkpoint = read_checkpoint(args.checkpoint)
        weights = weights_of(checkpoint)
        findings = verify(checkpoint, args.config and read_config(args.config))
        if is_misnamed(args.checkpoint):
            findings.append(Finding("the file", "its SHA-256 does not begin as its name says; download it again"))
    except (ValueError, OSError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for finding in findings:
        print(finding)
    against = f" against {args.config}" if args.config else ""
    print(f"{args.checkpoint}{against}: {len(weights)} weights, {len(findings) or 'no'} findings")
    return 1 if findings else 0
