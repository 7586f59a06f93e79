"""Exported files in their own runtimes, on the CPU.

As a program, ``python -P runtimes.py KIND FILE``, it runs a file where neither ce_mm nor OpenMMLab can be imported, and
so imports nothing of them. It reads batches of pictures from stdin and writes what the file makes of each to stdout;
first it says whether the file could be loaded at all.
"""
import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

Network = Callable[[Tensor], tuple[Tensor, ...]]

#: What an exported file does without.
WITHOUT = ("ce_mm", "mmengine", "mmcv", "mmdet", "mmpretrain")


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


def send(stream: BinaryIO, value: Tensor | tuple[Tensor, ...] | str) -> None:
    """Write a value for :func:`receive` at the other end."""
    content = io.BytesIO()
    torch.save(value, content)
    stream.write(content.tell().to_bytes(8, "little"))
    stream.write(content.getbuffer())
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """What was sent, or None where the other end has closed the stream."""
    size = int.from_bytes(stream.read(8), "little")
    return torch.load(io.BytesIO(stream.read(size)), weights_only=True) if size else None


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def main() -> None:
    """Load the file, and answer each batch; what fails is answered by the first line of its error."""
    kind, path = sys.argv[1:]
    sys.modules.update(dict.fromkeys(WITHOUT))  # importing one of them fails from here on
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints is no answer
    try:
        network = LOADERS[kind](path)
    except Exception as error:  # each runtime has its own
        send(answers, first_line(error))
        return
    send(answers, "")
    while (pictures := receive(sys.stdin.buffer)) is not None:
        try:
            with torch.no_grad():
                answer = tuple(network(pictures))
        except Exception as error:
            answer = first_line(error)
        send(answers, answer)


if __name__ == "__main__":
    main()
