"""How long a training step takes on many GPUs, on paper: computing, and messages of a latency and a bandwidth.

A message costs α + m/β: so much for its way, whatever its size, and so much for each byte. α depends on the way that
messages take, as NCCL's own model of its algorithms counts it: along a ring of all GPUs, or up and down a tree. The
gradients of the parameters may travel while the backward pass goes on. What layers exchange, SyncBN's and SyncCE's
statistics, may not: the layer waits for it, and so does all that follows.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.evidence.scaling.messages import Collective

_NCCL = "NCCL's src/graph/tuning.cc (commit b647562)"


def _assumed(default: float, unit: float, unit_name: str, what: str, source: str):
    return field(default=default, metadata=dict(unit=unit, unit_name=unit_name, what=what, source=source))


@dataclass(frozen=True)
class Cluster:
    """Nodes of GPUs; times in seconds, bandwidths in bytes per second. Each field says where its default is from.

    Raises:
        ValueError: a value that is no such thing.
    """

    gpus_per_node: int = _assumed(8, 1, "", "GPUs in a node", "DGX A100 and the like")
    start: float = _assumed(6.7e-6, 1e-6, "µs", "start of a collective", f"{_NCCL}: base latency of LL, 6.6 and 6.8")
    node_step: float = _assumed(0.6e-6, 1e-6, "µs", "a step between two GPUs of a node", f"{_NCCL}: NVLink, LL")
    tree_step: float = _assumed(5.0e-6, 1e-6, "µs", "a step between two nodes, in a tree", f"{_NCCL}: network, LL")
    ring_step: float = _assumed(2.7e-6, 1e-6, "µs", "a step between two nodes, in a ring", f"{_NCCL}: network, LL")
    ring_step_inside: float = _assumed(
        1.0e-6, 1e-6, "µs", "a step inside a node of a ring over several", f"{_NCCL}: 1 with Intel CPUs, 2 with AMD"
    )
    node_bandwidth: float = _assumed(
        200e9, 1e9, "GB/s", "bus bandwidth inside a node", "8 A100 over NVLink, nccl-tests issue 149 on GitHub: ~200"
    )
    network_bandwidth: float = _assumed(
        85e9, 1e9, "GB/s", "bus bandwidth between nodes",
        "3 nodes of 8 A100 and 4 HDR InfiniBand cards, nccl-tests issue 119 on GitHub: 84.8",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if "bandwidth" in name or name == "gpus_per_node":
                if not value > 0:
                    raise ValueError(f"{name} must be greater than 0, got {value}")
            elif not value >= 0:
                raise ValueError(f"{name}, a time, must be at least 0, got {value}")

    def nodes(self, gpus: int) -> int:
        """How many nodes the GPUs fill.

        Raises:
            ValueError: fewer than one GPU, or nodes that are not full beside others.
        """
        if gpus < 1 or (gpus > self.gpus_per_node and gpus % self.gpus_per_node):
            raise ValueError(
                f"a number of GPUs must be at least 1, and above {self.gpus_per_node} a multiple of it (whole nodes), "
                f"got {gpus}"
            )
        return math.ceil(gpus / self.gpus_per_node)

    def all_reduce(self, gpus: int, size: float) -> float:
        """Seconds of an all-reduce of ``size`` bytes, by a ring or a tree, whichever is sooner there."""
        nodes = self.nodes(gpus)
        if gpus == 1:
            return 0.0
        bandwidth = self.node_bandwidth if nodes == 1 else self.network_bandwidth
        up = (min(gpus, self.gpus_per_node) - 1) * self.node_step + math.ceil(math.log2(nodes)) * self.tree_step
        tree = 2 * up + 2 * size / bandwidth
        between = 2 * nodes if nodes > 1 else 0
        ring = self._ring(nodes, 2 * (gpus - 1), between) + 2 * (gpus - 1) / gpus * size / bandwidth
        return self.start + min(tree, ring)

    def all_gather(self, gpus: int, size: float) -> float:
        """Seconds of an all-gather to which every GPU contributes ``size`` bytes: a ring, as NCCL has no other way."""
        nodes = self.nodes(gpus)
        if gpus == 1:
            return 0.0
        bandwidth = self.node_bandwidth if nodes == 1 else self.network_bandwidth
        return self.start + self._ring(nodes, gpus - 1, nodes - 1) + (gpus - 1) * size / bandwidth

    def _ring(self, nodes: int, steps: int, between: int) -> float:
        inside = self.node_step if nodes == 1 else max(self.node_step, self.ring_step_inside)
        return (steps - between) * inside + between * self.ring_step

    def seconds(self, collectives: Sequence[Collective], gpus: int) -> float:
        """Of collectives one after the other.

        Raises:
            ValueError: a kind that has no model here.
        """
        models = dict(all_reduce=self.all_reduce, all_gather=self.all_gather)
        total = 0.0
        for each in collectives:
            if each.kind not in models:
                raise ValueError(f"there is a model for {' and '.join(models)}, not for {each.kind}")
            total += models[each.kind](gpus, each.bytes)
        return total


@dataclass(frozen=True)
class Network:
    """A training step of one process."""

    forward: float  #: seconds of the forward pass on one GPU
    backward: float  #: and of the backward pass, with the optimizer
    collectives: Sequence[Collective]  #: of a step


@dataclass(frozen=True)
class Step:
    """Where the seconds of a step on many GPUs go."""

    forward: float
    backward: float
    forward_statistics: float
    backward_statistics: float
    gradients: float

    @property
    def no_overlap(self) -> float:
        """Everything one after the other: the upper bound."""
        return self.forward + self.backward + self.forward_statistics + self.backward_statistics + self.gradients

    @property
    def full_overlap(self) -> float:
        """The gradients travel beside the backward pass and disturb nothing: the lower bound."""
        return self.forward + self.forward_statistics + max(self.backward + self.backward_statistics, self.gradients)

    @property
    def alone(self) -> float:
        """The same step without other GPUs."""
        return self.forward + self.backward


def step(network: Network, cluster: Cluster, gpus: int, sync_group: int | None = None) -> Step:
    """Estimate a training step.

    Args:
        network: what one process does.
        cluster: where.
        gpus: processes, one on each GPU.
        sync_group: how many processes share statistics; None for all.

    Raises:
        ValueError: ``gpus`` do not fill whole nodes, or are not whole groups.
    """
    cluster.nodes(gpus)  # raises where they cannot be placed
    group = gpus if sync_group is None else min(sync_group, gpus)
    if group < 1 or gpus % group:
        raise ValueError(f"{gpus} GPUs cannot be cut into groups of {sync_group} that share statistics")

    def statistics(phase: str) -> float:
        found = [each for each in network.collectives if (each.phase, each.purpose) == (phase, "statistics")]
        return cluster.seconds(found, group)

    gradients = [each for each in network.collectives if each.purpose == "gradients"]
    return Step(
        network.forward,
        network.backward,
        statistics("forward"),
        statistics("backward"),
        cluster.seconds(gradients, gpus),
    )


def training_hours(seconds: float, gpus: int, batch: int, pictures: int, epochs: int) -> float:
    """Hours of a training whose steps take so many seconds, with ``batch`` pictures on each GPU."""
    return epochs * math.ceil(pictures / (batch * gpus)) * seconds / 3600
