"""The formats: how a network is written as a file of each. How such a file runs again is in :mod:`.runtimes`.

All take any batch and picture size. Metadata are text by name: properties of an ONNX model, the file ``ce_mm.json`` in
the archive of the other two.
"""
import importlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ce_mm.choices import EXPORTED
from ce_mm.compat.requirements import MissingRequirementError
from ce_mm.launching.config import one_line

Metadata = dict[str, str]

#: The file in an archive of PyTorch that holds the metadata.
METADATA_FILE = "ce_mm.json"

#: Namespaces of the operators that a model's graph has from PyTorch.
_OF_PYTORCH = ("aten", "prim", "prims", "quantized")

_AXES = {0: "batch", 2: "height", 3: "width"}


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        suffix: how its names end.
        needs: packages beside PyTorch.
        write: module, example pictures, names of the outputs, metadata and path -> a file there.
    """

    suffix: str
    needs: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, Sequence[str], Metadata, Path], None]

    def require(self, name: str) -> None:
        """Raise MissingRequirementError where a package of the format of that name cannot be imported."""
        for package in self.needs:
            try:
                importlib.import_module(package)
            except Exception as error:  # a broken installation may raise anything at import
                raise MissingRequirementError(
                    f"the format {name} needs the package {package}, which cannot be imported ({one_line(error)}); "
                    'pip install "ce_mm[export]" brings it',
                    name=package,
                ) from error


def _write_onnx(module: nn.Module, example: Tensor, outputs: Sequence[str], metadata: Metadata, path: Path) -> None:
    import onnx

    program = torch.onnx.export(
        _program(module, example),
        dynamic_shapes=(_AXES,),
        input_names=["pictures"],
        output_names=list(outputs),
        verbose=False,
    )
    model = program.model_proto
    for node in model.graph.node:
        # Without the graph of PyTorch in words, line by line; the place in the model is kept, as viewers show it.
        kept = [entry for entry in node.metadata_props if entry.key == "namespace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    # onnxruntime's dynamic quantisation transposes weights, and takes offence where their shapes are there twice.
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(shapes)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def _write_torchscript(
    module: nn.Module, example: Tensor, outputs: Sequence[str], metadata: Metadata, path: Path
) -> None:
    with warnings.catch_warnings():
        # What a tracer takes for constant, the check with other sizes finds.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        traced = torch.jit.trace(module, example, check_trace=False)
        with path.open("wb") as file:  # by a name, that would be in the file
            torch.jit.save(traced, file, _extra_files={METADATA_FILE: json.dumps(metadata, indent=1)})


def _write_exported_program(
    module: nn.Module, example: Tensor, outputs: Sequence[str], metadata: Metadata, path: Path
) -> None:
    program = _program(module, example)
    with path.open("w+b") as file:  # by a name, it would have to end in .pt2
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata, indent=1)})


def _program(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The module as a graph for any batch and size, without the places in Python's files that it came from."""
    axes = dict.fromkeys(_AXES, torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (example,), dynamic_shapes=(axes,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    called = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    foreign = sorted(target.name() for target in called if target.namespace not in _OF_PYTORCH)
    if foreign:
        raise ValueError(
            f"it calls {', '.join(foreign)}, which PyTorch has not by itself: a layer that is not of standard operators"
        )
    return program


FORMATS = {
    "onnx": Format(EXPORTED["onnx"], ("onnx", "onnxscript", "onnxruntime"), _write_onnx),
    "torchscript": Format(EXPORTED["torchscript"], (), _write_torchscript),
    "exported-program": Format(EXPORTED["exported-program"], (), _write_exported_program),
}
