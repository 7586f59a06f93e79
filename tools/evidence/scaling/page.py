"""ResNet-50 with BN, SyncBN, CE and SyncCE on 8 to 1024 GPUs: the page that sets the model beside its assumptions."""
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ce_mm.analysis import add_legend, save_figure
from tools.evidence import pages
from tools.evidence.scaling.messages import Message, messages_of_a_step, total
from tools.evidence.scaling.model import Assumptions, Step, step

GPUS = tuple(8 * 2**doubling for doubling in range(8))
#: The numbers, the page and the picture.
FILES = ("scaling.json", "scaling.md", "scaling.png")
#: The page without its numbers.
TEMPLATE = Path(__file__).with_name("page.md")
#: Where the sensitivity to the assumptions is shown.
SHOWN = (8, 64, 1024)
#: N, C, H, W that messages are counted with; their sizes do not depend on it.
COUNTED_SHAPE = (2, 3, 32, 32)

Messages = Mapping[str, Sequence[Message]]  # of each kind
Rows = Mapping[str, Sequence[Step]]  # a kind and who shares statistics: its step on each number of GPUs


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


def count() -> Messages:
    """The messages of a training step of every kind, by counting them."""
    return {name: messages_of_a_step(build(kind), COUNTED_SHAPE) for name, kind in KINDS.items()}


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


def read_benchmark(path: Path) -> Assumptions:
    """The backward pass's share of a plain ResNet-50's step, and CE's step over it, as the newest run measured them.

    Raises:
        ValueError: the file is no record of the benchmark of networks with ResNet-50 in its first run.
    """
    try:
        newest = next(iter(json.loads(path.read_text(encoding="utf-8"))["records"].values()))
        variants = newest["networks"]["resnet50"]
        forward, backward = (variants["BN"][part]["ms"] for part in ("forward", "backward"))
        ce = variants.get("CE compiled", variants["CE plain"])
        return Assumptions(backward / (forward + backward), ce["step"]["ratio"])
    except (ValueError, KeyError, TypeError, StopIteration):
        raise ValueError(f"{path}: expected what tools.evidence.benchmark.network wrote, with resnet50 in it") from None


def estimate(counted: Messages, assumptions: Assumptions, gpus: Sequence[int] = GPUS) -> Rows:
    """A row for every kind; a second one for those that share statistics, in groups as large as a node."""
    rows, group = {}, assumptions.gpus_per_node
    for name, messages in counted.items():
        has_ce = KINDS[name].ce is not None
        rows[name] = [step(messages, has_ce, assumptions, n) for n in gpus]
        if total(messages, purpose="statistics").calls:
            rows[f"{name}, in groups of {group}"] = [step(messages, has_ce, assumptions, n, group) for n in gpus]
    return rows


def sensitivity(counted: Messages, assumptions: Assumptions, gpus: Sequence[int] = SHOWN) -> dict[str, Rows]:
    """The rows again, with one assumption changed at a time."""

    def scaled(factor: float, *names: str) -> Rows:
        values = {name: factor * getattr(assumptions, name) for name in names}
        return estimate(counted, replace(assumptions, **values), gpus)

    latencies = ("start", "node_step", "tree_step", "ring_step", "ring_step_inside")
    reduced = {name: [replace(each, kind="all_reduce") for each in messages] for name, messages in counted.items()}
    return {
        "as assumed": scaled(1),
        "all latencies halved": scaled(0.5, *latencies),
        "all latencies doubled": scaled(2, *latencies),
        "bandwidths halved": scaled(0.5, "node_bandwidth", "network_bandwidth"),
        "GPUs of half the speed": scaled(0.5, "pictures_per_second"),
        "CE computes as fast as BN": estimate(counted, replace(assumptions, ce_ratio=1), gpus),
        "CE computes for 1.5 of BN": estimate(counted, replace(assumptions, ce_ratio=1.5), gpus),
        "an all-gather as cheap as an all-reduce of its bytes": estimate(reduced, assumptions, gpus),
    }


def write(counted: Messages, assumptions: Assumptions, folder: Path) -> None:
    """Write :data:`FILES`.

    Args:
        counted: of :func:`count`.
        assumptions: what the page takes from elsewhere.
        folder: to write to, made if need be.
    """
    rows, changed = estimate(counted, assumptions), sensitivity(counted, assumptions)
    numbers = dict(
        torch=torch.__version__,
        assumptions=asdict(assumptions),
        messages={name: [asdict(each) for each in messages] for name, messages in counted.items()},
        gpus=GPUS,
        microseconds={name: [asdict(each) for each in steps] for name, steps in rows.items()},
    )
    pages.write(folder, "scaling", _page(counted, assumptions, rows, changed), numbers)
    draw(rows, folder / FILES[2])


def _page(counted: Messages, assumptions: Assumptions, rows: Rows, changed: Mapping[str, Rows]) -> str:
    statistics = {name: total(messages, purpose="statistics") for name, messages in counted.items()}
    waits = {name: steps[GPUS.index(64)].statistics / 1e3 for name, steps in rows.items()}
    on_8 = step(counted["BN"], False, replace(assumptions, batch=256), 8)

    def table(low: Callable[[Step], float], high: Callable[[Step], float], digits: int) -> str:
        body = ([name, *(_range(low(each), high(each), digits) for each in steps)] for name, steps in rows.items())
        return pages.table(["", *(f"{gpus} GPUs" for gpus in GPUS)], body)

    return TEMPLATE.read_text(encoding="utf-8").format(
        a=assumptions, torch=torch.__version__, statistics=statistics,
        forward={name: total(found, purpose="statistics", phase="forward") for name, found in counted.items()},
        byte_ratio=statistics["SyncCE"].bytes / statistics["SyncBN"].bytes,
        ce_wait=f"{waits['SyncCE']:.1f}", bn_wait=f"{waits['SyncBN']:.1f}",
        communication=_message_table(counted),
        modelled=_range(8 * on_8.alone / on_8.no_overlap, 8 * on_8.alone / on_8.full_overlap, 2),
        milliseconds=table(lambda each: each.full_overlap / 1e3, lambda each: each.no_overlap / 1e3, 1),
        efficiency=table(lambda each: each.alone / each.no_overlap, lambda each: each.alone / each.full_overlap, 2),
        group_batch=assumptions.gpus_per_node * assumptions.batch,
        sensitivity=_sensitivity_table(changed),
    )  # fmt: skip


def _range(low: float, high: float, digits: int) -> str:
    ends = [f"{value:.{digits}f}" for value in (low, high)]
    return ends[0] if ends[0] == ends[1] else "–".join(ends)


def _message_table(counted: Messages) -> str:
    headings = ["", "", "statistics forward", "bytes", "statistics backward", "bytes", "gradients", "bytes"]
    rows = []
    for name, messages in counted.items():
        parts = [
            total(messages, purpose="statistics", phase="forward"),
            total(messages, purpose="statistics", phase="backward"),
            total(messages, purpose="gradients"),
        ]
        rows.append([name, KINDS[name].what, *(f"{n:,}" for part in parts for n in (part.calls, part.bytes))])
    return pages.table(headings, rows, words=(0, 1))


def _sensitivity_table(changed: Mapping[str, Rows]) -> str:
    names = [name for name in changed["as assumed"] if name.partition(",")[0] in ("SyncBN", "CE", "SyncCE")]
    body = []
    for change, rows in changed.items():
        plain = [each.full_overlap for each in rows["BN"]]
        ratios = ([each.full_overlap / base for each, base in zip(rows[name], plain, strict=True)] for name in names)
        body.append([change, *(" / ".join(f"{ratio:.2f}" for ratio in cell) for cell in ratios)])
    return pages.table(["", *names], body)


def draw(rows: Rows, out: Path) -> None:
    """Draw the steps with the band between the bounds, and the time that statistics take of them, against the GPUs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = Figure(figsize=(14, 5), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(label.partition(",")[0] for label in rows))
    for label, steps in rows.items():
        name, _, grouped = label.partition(",")
        style = dict(color=f"C{names.index(name)}", ls="--" if grouped else "-", marker="." if grouped else "o", ms=4)
        lower = [each.full_overlap / 1e3 for each in steps]
        left.plot(GPUS, lower, label=label, **style)
        if not grouped:
            upper = [each.no_overlap / 1e3 for each in steps]
            left.fill_between(GPUS, lower, upper, color=style["color"], alpha=0.12, lw=0)
        waits = [each.statistics / 1e3 for each in steps]
        if any(waits):
            right.plot(GPUS, waits, label=label, **style)
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
    add_legend([left, right], "lower center", len(names))
    figure.suptitle("An estimate: nothing was run on GPUs")
    save_figure(figure, out)
