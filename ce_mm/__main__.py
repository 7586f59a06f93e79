"""The command ``ce_mm``, or ``python -m ce_mm``."""
import argparse
import importlib
import sys
from collections.abc import Sequence

DESCRIPTION = """Channel Equilibrium for the OpenMMLab libraries.

A CONFIG is a file, or one that a package has installed: ce_mm::coco/mask-rcnn_ce-r50_fpn_2x_coco.py, mmdet::..."""
#: What one does with them -> command, a module of :mod:`ce_mm.commands`, imported when it is asked for -> what it does.
COMMANDS = {
    "train and test": {
        "train": "train a model, with the options of mmdet's or mmpretrain's own tools/train.py",
        "test": "test a checkpoint, with the options of their tools/test.py",
        "eval": "COCO's average precision of the results that a test has dumped",
        "plot": "draw how a training went: its loss, and the AP of each validation",
        "draw": "draw the results of a test, and the truth, on some of the pictures",
    },
    "checkpoints": {
        "convert": "convert the CE authors', torchvision's, mmpretrain's or mmdet's weights",
        "verify": "look through a checkpoint, and whether it fits a config",
    },
    "use a trained network": {
        "predict": "find objects in pictures: boxes and masks, drawn and as JSON",
        "export": "write it as ONNX, TorchScript or PyTorch's exported program",
    },
    "see what CE does to channels": {
        "inhibited": "the part of inhibited channels of each layer",
        "ablation": "what is lost as channels are set to zero",
        "spectrum": "how unequal the channels of a group are before and behind CE",
        "norms": "the part of beta <= 0 of each norm, and lambda of each CE layer",
    },
    "data to try things on": {
        "shapes": "make a small detection data set of drawn shapes",
        "subset": "take a few pictures out of a COCO annotation file",
    },
    "others": {
        "run": "run any tool that mmdet or mmpretrain installs, with ce_mm imported first",
        "warmup": "compile the CPU's passes now, so that nothing waits for it later",
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments, or else the command line's, ask for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="ce_mm", usage="ce_mm COMMAND ...", description=DESCRIPTION, epilog=_listed(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    known = [name for group in COMMANDS.values() for name in group]
    parser.add_argument("command", nargs="?", choices=known, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its own: ce_mm COMMAND --help")
    asked = parser.parse_args(arguments)
    if asked.command is None:
        parser.print_help()
        return 0
    sys.argv = [f"ce_mm {asked.command}", *asked.arguments]  # as if it was a program of its own
    try:
        return importlib.import_module(f"ce_mm.commands.{asked.command}").main()
    except KeyboardInterrupt:
        return 130


def _listed() -> str:
    """All commands with a line each."""
    lines = []
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:<11}{what}" for name, what in commands.items())]
    return "\n".join(lines[1:])


if __name__ == "__main__":
    sys.exit(main())
