"""ResNet-50 with BN, SyncBN, CE and SyncCE on 8 to 1024 GPUs: the page that sets the model beside its assumptions."""
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ce_mm.analysis import save_figure
from ce_mm.files import replacing
from tools.evidence import markdown
from tools.evidence.scaling.message_time import Line
from tools.evidence.scaling.messages import Collective, total, training_steps
from tools.evidence.scaling.model import Cluster, Network, Step, step, training_hours

GPUS = tuple(8 * 2**doubling for doubling in range(8))
#: ImageNet's training set, and the paper's training.
PICTURES, EPOCHS = 1_281_167, 100
#: The numbers, the page and the picture.
FILES = ("scaling.json", "scaling.md", "scaling.png")
#: What NVIDIA publishes for a plain ResNet-50 with mixed precision on a DGX A100: pictures a second on one GPU and on
#: eight, and pictures on each.
PUBLISHED_SPEED, PUBLISHED_ON_8, PUBLISHED_BATCH = 2470, 16621, 256
PUBLISHED_WHERE = "NVIDIA DeepLearningExamples, README of ResNet50 v1.5 for PyTorch: A100 80GB, mixed precision"
#: What the table of assumptions says of a value that was given on the command line.
CHOSEN = "chosen for this page"
#: Where the sensitivity to the assumptions is shown.
SHOWN = (8, 64, 1024)
#: N, C, H, W that messages are counted with; their sizes do not depend on it.
COUNTED_SHAPE = (2, 3, 32, 32)


@dataclass(frozen=True)
class Kind:
    """A ResNet-50."""

    what: str  #: for the page
    norm: str = "BN"
    ce: dict | None = None  #: CENorm's arguments; None for a network without CE


KINDS = {
    "BN": Kind("plain"),
    "SyncBN": Kind("plain, all norms SyncBN", norm="SyncBN"),
    "CE": Kind("CE, the covariance of each process, as in the paper", ce={}),
    "CE on SyncBN": Kind("the same, all norms and base norms SyncBN", norm="SyncBN", ce={}),
    "SyncCE": Kind("CE with `sync=True`, the other norms BN", ce=dict(sync=True)),
    "SyncCE and SyncBN": Kind("CE with `sync=True`, the other norms SyncBN", norm="SyncBN", ce=dict(sync=True)),
}


@dataclass(frozen=True)
class Assumptions:
    """What the page does not measure, but takes from elsewhere."""

    pictures_per_second: float  #: that one GPU trains a plain ResNet-50 with
    backward_share: float  #: of a step's computing
    ce_ratio: float  #: computing of a step with CE over that of a plain one
    batch: int = 32  #: pictures on each GPU
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        for name in ("pictures_per_second", "ce_ratio", "batch"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")

    def network(self, kind: Kind, collectives: Sequence[Collective]) -> Network:
        """A network's step on one GPU, and its messages."""
        seconds = self.batch / self.pictures_per_second * (1 if kind.ce is None else self.ce_ratio)
        return Network(seconds * (1 - self.backward_share), seconds * self.backward_share, collectives)


def count() -> dict[str, list[Collective]]:
    """The collectives of a training step of every kind, by counting them."""
    return training_steps({name: partial(build, kind) for name, kind in KINDS.items()}, COUNTED_SHAPE)


def build(kind: Kind) -> nn.Module:
    """A ResNet-50 of this kind, as a classifier of 1000 classes."""
    backbone = dict(type="ResNet", depth=50, norm_cfg=dict(type=kind.norm, requires_grad=True))
    if kind.ce is not None:
        backbone |= dict(type="CEResNet", ce_cfg=kind.ce)
    head = dict(type="LinearClsHead", num_classes=1000, in_channels=2048)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(
            dict(type="ImageClassifier", backbone=backbone, neck=dict(type="GlobalAveragePooling"), head=head)
        )


def read_benchmark(path: Path) -> tuple[float, float]:
    """The backward pass's share of a plain ResNet-50's step, and CE's step over it, as the benchmark measured them.

    Raises:
        ValueError: the file is no such record.
    """
    try:
        variants = json.loads(path.read_text(encoding="utf-8"))["networks"]["resnet50"]["variants"]
        forward, backward = (variants["BN"][part]["ms"] for part in ("forward", "backward"))
        return backward / (forward + backward), variants["CE"]["step"]["ratio"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: expected what tools.evidence.benchmark.network wrote, with resnet50 in it") from None


@dataclass(frozen=True)
class Row:
    """A kind of network and who shares statistics, with its step on each number of GPUs."""

    name: str
    steps: tuple[Step, ...]


def estimate(counted: Mapping[str, Sequence[Collective]], assumptions: Assumptions, gpus: Sequence[int]) -> list[Row]:
    """A row for every kind; a second one for those that share statistics, in groups as large as a node."""
    rows = []
    for name, collectives in counted.items():
        network, cluster = assumptions.network(KINDS[name], collectives), assumptions.cluster
        rows.append(Row(name, tuple(step(network, cluster, n) for n in gpus)))
        if total(collectives, purpose="statistics").calls:
            group = cluster.gpus_per_node
            rows.append(Row(f"{name}, in groups of {group}", tuple(step(network, cluster, n, group) for n in gpus)))
    return rows


def sensitivity(
    counted: Mapping[str, Sequence[Collective]], assumptions: Assumptions, gpus: Sequence[int]
) -> dict[str, list[Row]]:
    """The rows again, with one assumption changed at a time."""
    cluster = assumptions.cluster
    latencies = [each.name for each in fields(Cluster) if each.metadata["unit_name"] == "µs"]

    def scaled(names: Iterable[str], factor: float) -> Assumptions:
        return replace(
            assumptions, cluster=replace(cluster, **{name: factor * getattr(cluster, name) for name in names})
        )

    bandwidths = ("node_bandwidth", "network_bandwidth")
    reduced = {
        name: [replace(each, kind="all_reduce") for each in collectives] for name, collectives in counted.items()
    }
    half_speed = replace(assumptions, pictures_per_second=assumptions.pictures_per_second / 2)
    return {
        "as assumed": estimate(counted, assumptions, gpus),
        "all latencies halved": estimate(counted, scaled(latencies, 0.5), gpus),
        "all latencies doubled": estimate(counted, scaled(latencies, 2), gpus),
        "bandwidths halved": estimate(counted, scaled(bandwidths, 0.5), gpus),
        "GPUs of half the speed": estimate(counted, half_speed, gpus),
        "CE computes as fast as BN": estimate(counted, replace(assumptions, ce_ratio=1), gpus),
        "CE computes for 1.5 of BN": estimate(counted, replace(assumptions, ce_ratio=1.5), gpus),
        "an all-gather as cheap as an all-reduce of its bytes": estimate(reduced, assumptions, gpus),
    }


_PAGE = """# Scaling on paper: CE-ResNet-50 on {first} to {last} GPUs

**This is an estimate. Nothing on this page was run on a GPU, nor on more than one machine.** Messages are counted as
they happen, in two processes on a CPU; the speed of GPUs and of their networks is taken from public figures, which the
table of assumptions names; between them stands a model of a few lines, `tools/evidence/scaling/model.py`.

```bash
{command}
```

The point is what waits. The gradients of the parameters are many bytes in few messages, and travel while the backward
pass goes on. The statistics that SyncBN and SyncCE exchange are few bytes in many messages, two or three for each
layer, and the layer stands still until they are there: what counts is less their size than their number, times the
latency. SyncCE exchanges {byte_ratio:.1f} times the bytes of SyncBN, but in {ce_calls} messages to SyncBN's
{bn_calls}: of a step on {middle} GPUs it waits {ce_wait} ms by the model, and SyncBN {bn_wait} ms. (SyncCE shares the
statistics of the {layers} layers that have CE, SyncBN those of all {norms} norms.)

![Steps and statistics against the number of GPUs](scaling.png)

## What a step sends, counted

One training step of ResNet-50 under DistributedDataParallel as MMEngine sets it up, PyTorch {torch}: calls, and the
bytes that each process contributes. They are the same with mixed precision, which leaves weights, gradients and
statistics as they are. PyTorch's SyncBatchNorm does not run on CPUs; its own code is run here with stand-ins for the
five operators between its messages (`tools/evidence/scaling/sync_batch_norm_on_cpu.py`).

{communication}

SyncBN gathers 2C + 1 numbers of float32 forward and adds up 2C backward, for each of {norms} norms. A CE layer on
SyncBN adds up C + 1 for a common shift, and then 2C + 1 forward and backward. SyncCE adds up C (g + 2) + 2 numbers of
float64 (g = 16), and as many backward, for each of {layers} layers.

## Assumptions

{assumptions}

* The time of a message is α + m/β. An all-reduce takes a ring or a tree, whichever is sooner; an all-gather, with which
  SyncBN exchanges its statistics, has a ring alone in the NCCL cited (apart from hardware that multiplies messages
  itself), whose latency grows with the number of GPUs and not with its logarithm; the last row of the last table shows
  what hangs on that. The latencies are those of NCCL's LL protocol, made for small messages; the bandwidths are those
  of large ones, so both favour the message.
* Statistics are never hidden. Gradients are hidden behind the backward pass wholly (lower bound) or not at all (upper).
* SyncBN computes as fast as BN, and SyncCE as CE.
* Whole nodes; every GPU as fast as every other; pictures are always there in time.

Not in the model, and to the disadvantage of all that share statistics: messages of layers and gradients use one
communicator, so a statistic may wait behind a bucket of gradients (between the two bounds); SyncBatchNorm makes the
CPU wait for the GPU in every layer; and with a barrier in every layer all wait for the slowest GPU of that moment. In
general: launches of small kernels, of which CE has more than BN. A caution: the source of the GPU's speed gives
{real:.2f} times the speed of one GPU on 8, with {real_batch} pictures on each; this model says {modelled}.

## Estimates

Milliseconds of a step with {batch} pictures on each GPU: gradients hidden wholly – not at all.

{milliseconds}

Minutes of {epochs} epochs of ImageNet ({pictures:,} pictures), likewise. This says nothing about accuracy: {last} GPUs
make a batch of {last_batch:,}, for which a schedule would have to be found first.

{minutes}

Efficiency: the time of the same network's step on one GPU over that of a step here.

{efficiency}

Sharing among all GPUs costs more with each doubling; sharing *in groups of {group}*, the GPUs of a node, which have
{group_batch} pictures together, costs the same on any number of them, and is the practical choice. SyncBN has an
argument for it, and SyncCE takes the group of its base norm. In the script that makes the model, for all norms:

```python
group, _ = torch.distributed.new_subgroups({group})
model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
```

## How much hangs on the assumptions

A step over BN's on as many GPUs and under the same assumptions, gradients hidden wholly in both. In each cell: on
{sensitivity_gpus} GPUs.

{sensitivity}

## Does a message cost α + m/β?

All-reduces between two processes of one machine with gloo, on a CPU, of each size the fastest of many:
α = {latency:.0f} µs and β = {bandwidth:.2f} GB/s fit best. What is to be seen is the form, that small messages cost
much the same whatever their size; the numbers are of this CPU. Times are rough where a machine has other work to do,
and a whole step was not compared with the model.

{line}
"""


def write(
    counted: Mapping[str, Sequence[Collective]],
    assumptions: Assumptions,
    sources: Mapping[str, str],
    line: Line,
    folder: Path,
    command: str,
) -> None:
    """Write :data:`FILES`.

    Args:
        counted: of :func:`count`.
        assumptions: what the page takes from elsewhere.
        sources: where from, for those that are no fields of the cluster.
        line: measured times of messages.
        folder: to write to, made if need be.
        command: what repeats the page.
    """
    rows = estimate(counted, assumptions, GPUS)
    changed = sensitivity(counted, assumptions, GPUS)
    numbers = dict(
        command=command,
        torch=torch.__version__,
        assumptions=asdict(assumptions),
        gpus=GPUS,
        collectives={name: [asdict(each) for each in collectives] for name, collectives in counted.items()},
        steps={
            row.name: [
                asdict(each) | dict(no_overlap=each.no_overlap, full_overlap=each.full_overlap) for each in row.steps
            ]
            for row in rows
        },
        sensitivity={
            change: {row.name: [each.full_overlap for each in row.steps] for row in found}
            for change, found in changed.items()
        },
        messages=asdict(line),
    )
    page = _page(counted, assumptions, sources, rows, changed, line, command)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(FILES, (json.dumps(numbers, indent=1) + "\n", page), strict=False):
        with replacing(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    draw(rows, folder / FILES[2])


def _page(
    counted: Mapping[str, Sequence[Collective]],
    assumptions: Assumptions,
    sources: Mapping[str, str],
    rows: Sequence[Row],
    changed: Mapping[str, Sequence[Row]],
    line: Line,
    command: str,
) -> str:
    statistics = {name: total(collectives, purpose="statistics") for name, collectives in counted.items()}
    forward = {name: total(found, purpose="statistics", phase="forward") for name, found in counted.items()}
    middle = GPUS.index(64)
    waits = {
        row.name: 1e3 * (row.steps[middle].forward_statistics + row.steps[middle].backward_statistics) for row in rows
    }
    published = replace(assumptions, pictures_per_second=PUBLISHED_SPEED, batch=PUBLISHED_BATCH)
    on_8 = step(published.network(KINDS["BN"], counted["BN"]), assumptions.cluster, 8)
    headings = ["", *(f"{gpus} GPUs" for gpus in GPUS)]
    batch, group = assumptions.batch, assumptions.cluster.gpus_per_node

    def minutes(each: Step, gpus: int) -> str:
        bounds = [each.full_overlap, each.no_overlap]
        return _range(*(60 * training_hours(seconds, gpus, batch, PICTURES, EPOCHS) for seconds in bounds), digits=1)

    def table(cell) -> str:
        body = ([row.name, *(cell(each, n) for each, n in zip(row.steps, GPUS, strict=True))] for row in rows)
        return markdown.table(headings, body)

    return _PAGE.format(
        first=GPUS[0], last=GPUS[-1], command=command, torch=torch.__version__,
        byte_ratio=statistics["SyncCE"].bytes / statistics["SyncBN"].bytes,
        ce_calls=statistics["SyncCE"].calls, bn_calls=statistics["SyncBN"].calls, middle=GPUS[middle],
        ce_wait=f"{waits['SyncCE']:.1f}", bn_wait=f"{waits['SyncBN']:.1f}",
        communication=_communication_table(counted),
        norms=forward["SyncBN"].calls, layers=forward["SyncCE"].calls,
        assumptions=_assumption_table(assumptions, sources),
        real=PUBLISHED_ON_8 / PUBLISHED_SPEED, real_batch=PUBLISHED_BATCH,
        modelled=_range(8 * on_8.alone / on_8.no_overlap, 8 * on_8.alone / on_8.full_overlap, 2),
        batch=batch, last_batch=batch * GPUS[-1], epochs=EPOCHS, pictures=PICTURES,
        milliseconds=table(lambda each, _: _range(1e3 * each.full_overlap, 1e3 * each.no_overlap, digits=1)),
        minutes=table(minutes),
        efficiency=table(lambda each, _: _range(each.alone / each.no_overlap, each.alone / each.full_overlap, 2)),
        group=group, group_batch=group * batch,
        sensitivity=_sensitivity_table(changed), sensitivity_gpus=" / ".join(map(str, SHOWN)),
        latency=1e6 * line.latency, bandwidth=line.bandwidth / 1e9, line=_line_table(line),
    )  # fmt: skip


def _range(low: float, high: float, digits: int) -> str:
    ends = [f"{value:.{digits}f}" for value in (low, high)]
    return ends[0] if ends[0] == ends[1] else "–".join(ends)


def _communication_table(counted: Mapping[str, Sequence[Collective]]) -> str:
    headings = ["", "", "statistics forward", "bytes", "statistics backward", "bytes", "gradients", "bytes"]
    rows = []
    for name, collectives in counted.items():
        parts = [
            total(collectives, purpose="statistics", phase="forward"),
            total(collectives, purpose="statistics", phase="backward"),
            total(collectives, purpose="gradients"),
        ]
        rows.append([name, KINDS[name].what, *(f"{n:,}" for part in parts for n in (part.calls, part.bytes))])
    return markdown.table(headings, rows, words=(0, 1))


def _assumption_table(assumptions: Assumptions, sources: Mapping[str, str]) -> str:
    rows = [
        ["pictures a second on one GPU, plain ResNet-50", f"{assumptions.pictures_per_second:g}",
         sources["pictures_per_second"]],
        ["pictures on each GPU", str(assumptions.batch), "the configs' batch; the GPU is taken to be as fast with it"],
        ["the backward pass's share of computing", f"{assumptions.backward_share:.2f}", sources["backward_share"]],
        ["computing with CE over that with BN", f"{assumptions.ce_ratio:.2f}", sources["ce_ratio"]],
    ]  # fmt: skip
    for each in fields(Cluster):
        meta, value = each.metadata, getattr(assumptions.cluster, each.name)
        source = meta["source"] if value == each.default else CHOSEN
        rows.append([meta["what"], f"{value / meta['unit']:g} {meta['unit_name']}".strip(), source])
    return markdown.table(["", "value", "from"], rows, words=(0, 2))


def _sensitivity_table(changed: Mapping[str, Sequence[Row]]) -> str:
    columns = [GPUS.index(gpus) for gpus in SHOWN]
    shown = ("SyncBN", "CE", "SyncCE")
    names = [row.name for row in next(iter(changed.values())) if row.name.partition(",")[0] in shown]
    body = []
    for change, rows in changed.items():
        steps = {row.name: row.steps for row in rows}
        cells = (
            " / ".join(f"{steps[name][i].full_overlap / steps['BN'][i].full_overlap:.2f}" for i in columns)
            for name in names
        )
        body.append([change, *cells])
    return markdown.table(["", *names], body)


def _line_table(line: Line) -> str:
    found = zip(line.sizes, line.seconds, strict=True)
    rows = [[f"{size:,}", f"{1e6 * seconds:.0f}", f"{1e6 * line.foretold(size):.0f}"] for size, seconds in found]
    return markdown.table(["bytes", "measured, µs", "α + m/β, µs"], rows)


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draw the steps with the band between the bounds, and the time that statistics take of them, against the GPUs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = Figure(figsize=(14, 5), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(row.name.partition(",")[0] for row in rows))
    for row in rows:
        name, _, grouped = row.name.partition(",")
        style = dict(color=f"C{names.index(name)}", ls="--" if grouped else "-", marker="." if grouped else "o", ms=4)
        lower = [1e3 * each.full_overlap for each in row.steps]
        left.plot(GPUS, lower, label=row.name, **style)
        if not grouped:
            upper = [1e3 * each.no_overlap for each in row.steps]
            left.fill_between(GPUS, lower, upper, color=style["color"], alpha=0.12, lw=0)
        waits = [1e3 * (each.forward_statistics + each.backward_statistics) for each in row.steps]
        if any(waits):
            right.plot(GPUS, waits, label=row.name, **style)
    left.set(title="a step: gradients hidden wholly (line) to not at all (band)", ylabel="ms", yscale="log")
    right.set(title="of it, waiting for statistics", ylabel="ms", yscale="log")
    for axis in (left, right):
        axis.set(xscale="log", xlabel="GPUs")
        axis.set_xticks(GPUS, map(str, GPUS))
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    figure.suptitle("An estimate: nothing was run on GPUs")
    save_figure(figure, out)
