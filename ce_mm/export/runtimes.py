"""Exported files in their own runtimes, on the CPU.

As a program, ``python -P runtimes.py KIND FILE BATCHES RESULTS``, it runs a file where neither ce_mm nor OpenMMLab can
be imported, and so imports nothing of them: BATCHES is a list of pictures, and RESULTS what the file makes of each.
"""
import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor], tuple[Tensor, ...]]

#: What an exported file does without.
WITHOUT = ("ce_mm", "mmengine", "mmcv", "mmdet", "mmpretrain", "torchvision")


def load_onnx(path: str) -> Network:
    """A file of the format onnx, in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pictures: tuple(map(torch.from_numpy, session.run(None, {"pictures": pictures.numpy()})))


def load_torchscript(path: str) -> Network:
    """A file of the format torchscript."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return torch.jit.load(path, map_location="cpu")


def load_exported_program(path: str) -> Network:
    """A file of the format exported-program."""
    with open(path, "rb") as file:  # by a name, it would have to end in .pt2
        return torch.export.load(file).module()


LOADERS = {"onnx": load_onnx, "torchscript": load_torchscript, "exported-program": load_exported_program}


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def main() -> None:
    """Load the file and run it; what fails is one line on stderr, the last, and status 1."""
    kind, file, batches, results = sys.argv[1:]
    sys.modules.update(dict.fromkeys(WITHOUT))  # importing one of them fails from here on
    step, outputs = "loading it", []
    try:
        network = LOADERS[kind](file)
        for pictures in torch.load(batches, weights_only=True):
            step = f"pictures of {'×'.join(map(str, pictures.shape))}"
            with torch.no_grad():
                outputs.append(tuple(network(pictures)))
    except Exception as error:  # each runtime has its own
        sys.exit(f"{step}: {first_line(error)}")
    torch.save(outputs, results)


if __name__ == "__main__":
    main()
