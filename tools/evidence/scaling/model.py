"""How long a training step takes on many GPUs, on paper: computing, and messages of a latency and a bandwidth.

A message costs α + m/β: so much for its way, whatever its size, and so much for each byte. α depends on the way that
messages take, as NCCL's own model of its algorithms counts it: along a ring of all GPUs, or up and down a tree. The
gradients of the parameters may travel while the backward pass goes on. What layers exchange, SyncBN's and SyncCE's
statistics, may not: the layer waits for it, and so does all that follows.
"""
import math
from collections.abc import Iterable
from dataclasses import dataclass

from tools.evidence.scaling.messages import Message


@dataclass(frozen=True)
class Assumptions:
    """What is not counted, but taken from elsewhere (the page says where): times in µs, bandwidths in GB/s."""

    backward_share: float  #: of a step's computing
    ce_ratio: float  #: computing of a step with CE over that of a plain one
    pictures_per_second: float = 2470  #: that one GPU trains a plain ResNet-50 with
    batch: int = 32  #: pictures on each GPU
    gpus_per_node: int = 8
    start: float = 6.7  #: of a collective
    node_step: float = 0.6  #: between two GPUs of a node
    tree_step: float = 5.0  #: between two nodes, in a tree
    ring_step: float = 2.7  #: between two nodes, in a ring
    ring_step_inside: float = 1.0  #: inside a node of a ring over several
    node_bandwidth: float = 200
    network_bandwidth: float = 85

    def all_reduce(self, gpus: int, size: float) -> float:
        """µs of an all-reduce of ``size`` bytes, by a ring or a tree, whichever is sooner there."""
        nodes, bandwidth = self._place(gpus)
        up = (min(gpus, self.gpus_per_node) - 1) * self.node_step + math.ceil(math.log2(nodes)) * self.tree_step
        tree = 2 * up + 2 * size / bandwidth
        between = 2 * nodes if nodes > 1 else 0
        ring = self._ring(nodes, 2 * (gpus - 1), between) + 2 * (gpus - 1) / gpus * size / bandwidth
        return self.start + min(tree, ring)

    def all_gather(self, gpus: int, size: float) -> float:
        """µs of an all-gather to which every GPU contributes ``size`` bytes: a ring, as NCCL has no other way."""
        nodes, bandwidth = self._place(gpus)
        return self.start + self._ring(nodes, gpus - 1, nodes - 1) + (gpus - 1) * size / bandwidth

    def _place(self, gpus: int) -> tuple[int, float]:
        """Nodes, and bytes per µs."""
        nodes = math.ceil(gpus / self.gpus_per_node)
        return nodes, 1e3 * (self.node_bandwidth if nodes == 1 else self.network_bandwidth)

    def _ring(self, nodes: int, steps: int, between: int) -> float:
        inside = self.node_step if nodes == 1 else max(self.node_step, self.ring_step_inside)
        return (steps - between) * inside + between * self.ring_step


@dataclass(frozen=True)
class Step:
    """Where the µs of a step on many GPUs go."""

    forward: float
    backward: float  #: with the optimizer
    forward_statistics: float
    backward_statistics: float
    gradients: float

    @property
    def statistics(self) -> float:
        """What layers wait for."""
        return self.forward_statistics + self.backward_statistics

    @property
    def alone(self) -> float:
        """The same step without other GPUs."""
        return self.forward + self.backward

    @property
    def no_overlap(self) -> float:
        """Everything one after the other: the upper bound."""
        return self.alone + self.statistics + self.gradients

    @property
    def full_overlap(self) -> float:
        """The gradients travel beside the backward pass and disturb nothing: the lower bound."""
        return self.forward + self.forward_statistics + max(self.backward + self.backward_statistics, self.gradients)


def step(
    messages: Iterable[Message], has_ce: bool, assumptions: Assumptions, gpus: int, sync_group: int | None = None
) -> Step:
    """Estimate a training step of ResNet-50.

    Args:
        messages: of a step.
        has_ce: whether it computes as long as one with CE.
        assumptions: all else.
        gpus: at least 2; more than a node has must fill whole nodes.
        sync_group: how many of them share statistics; None for all.
    """

    def waiting(among: int, purpose: str, phase: str) -> float:
        found = [each for each in messages if (each.purpose, each.phase) == (purpose, phase)]
        return sum(getattr(assumptions, each.kind)(among, each.bytes) for each in found)

    computing = 1e6 * assumptions.batch / assumptions.pictures_per_second * (assumptions.ce_ratio if has_ce else 1)
    return Step(
        forward=computing * (1 - assumptions.backward_share),
        backward=computing * assumptions.backward_share,
        forward_statistics=waiting(sync_group or gpus, "statistics", "forward"),
        backward_statistics=waiting(sync_group or gpus, "statistics", "backward"),
        gradients=waiting(gpus, "gradients", "backward"),
    )
