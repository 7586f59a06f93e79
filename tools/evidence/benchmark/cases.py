"""A layer or a network together with its inputs, ready to be measured."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tools.evidence.benchmark.settings import Settings


@dataclass
class Case:
    """A layer or a network with what a training step and inference need.

    Args:
        module: set to training or inference before it runs.
        run: a forward pass in training; its result gets ``gradient``.
        gradient: of the result; None where that is a number.
        inputs: tensors that may receive gradients, beside the module's parameters.
        infer: a forward pass in inference; None where it is ``run``.
    """

    module: nn.Module
    run: Callable[[], Tensor]
    gradient: Tensor | None = None
    inputs: tuple[Tensor, ...] = ()
    infer: Callable[[], object] | None = None
    output: Tensor | None = None

    def forward(self) -> None:
        """Run forward from a fresh start; the graph is kept for :meth:`backward`."""
        self.clear()
        self.output = self.run()

    def backward(self) -> None:
        """Run backward from the last :meth:`forward`."""
        self.output.backward(self.gradient)

    def inference(self) -> None:
        """Run forward without a graph."""
        with torch.no_grad():
            (self.infer or self.run)()

    def clear(self) -> None:
        """Let go of the last step's graph and gradients."""
        self.output = None
        for tensor in (*self.inputs, *self.module.parameters()):
            tensor.grad = None


def layer_case(layer: nn.Module, settings: Settings, shape: Sequence[int]) -> Case:
    """A layer on a random map, with a random gradient of its result."""
    x = settings.random_map(*shape, requires_grad=True)

    def run() -> Tensor:
        with settings.autocast():
            return layer(x)

    return Case(settings.placed(layer), run, settings.random_map(*shape), (x,))


def backbone_case(backbone: nn.Module, settings: Settings) -> Case:
    """A backbone on random pictures of 224×224 (32×32 if quick), with a random gradient of its last map.

    The backbone may return a map, or a tuple whose last is taken.
    """
    side = 32 if settings.quick else 224
    pictures = settings.random_map(settings.batch, 3, side, side)
    settings.placed(backbone)

    def run() -> Tensor:
        with settings.autocast():
            result = backbone(pictures)
        return result if isinstance(result, Tensor) else result[-1]

    with torch.no_grad():
        gradient = torch.randn_like(run())
    return Case(backbone, run, gradient)
