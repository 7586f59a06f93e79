"""What configs cost, side by side: a table for each network with its baseline, SE and CE, and a picture of them all."""
import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmengine.config import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ce_mm import backbones
from ce_mm.analysis import save_figure
from ce_mm.layers import CENorm
from tools.evidence import pages
from tools.evidence.complexity.counting import ROIS, Complexity, build, complexity, picture_shape

#: The numbers, the page and the picture.
FILES = ("complexity.json", "complexity.md", "complexity.png")
CE_PARTS = ("moments", "coefficients", "affine")
COLOURS = {"layers": "0.7", "moments": "C0", "coefficients": "C2", "affine": "C3", "other": "0.4"}

_PAGE = f"""# Parameters and multiply-adds

```bash
{{command}}
```

A multiply-add counts once. Counted are convolutions, linear layers (SE's included) and matrix products, and all that CE
does to a map: its *moments* and its *affine* map, where a lone subtraction or sum of an element counts as one too, and
between them the *coefficients*, which are matrix products. Elementwise work of other layers is not counted, as usual:
plain norms, activations, pools, residual adds.

All figures are for one picture. In inference CE uses the moving average of its whitening matrices. The training column
is the same forward pass in training mode, where CE takes the covariance and its inverse square root (once for a batch,
here of one picture); a detector whose config freezes CE's statistics (`norm_eval`) does the same in both. Two-stage
detectors: backbone, neck, RPN, and the heads for {ROIS} RoIs, masks for 100, as mmdet counts. × is the ratio to the
first baseline with BN, or where no config is one, to the same network without CE. SE is shown where there
is a config for it: ResNet-50 and 101, and Mask R-CNN on them (mmpretrain's SE is for ResNets). The paper reports 25.6 M
parameters for ResNet-50 and 29.3 M for CE-ResNet-50.

The configs have no CE in the final stages of a network, as the paper leaves it out there to save parameters; *in all
stages* is the first of them with CE there too.

![What SE and CE add](complexity.png)
"""


@dataclass(frozen=True)
class Row:
    """One config."""

    config: str
    network: str  #: what it shares with its baseline
    kind: str  #: 'baseline', 'SE' or 'CE'
    batch_norm: bool  #: whether there is BN in it
    shape: tuple[int, int, int]
    inference: Complexity
    training: Complexity
    without_ce: Complexity  #: the same network in inference, with every CE reduced to its base norm
    all_stages: bool = False  #: whether CE stands in stages that the config leaves out, see :func:`in_all_stages`

    @property
    def name(self) -> str:
        """The config's name, and what differs from it."""
        return Path(self.config).stem + (", in all stages" if self.all_stages else "")


def measure(path: Path, config: Config, shape: tuple[int, int, int] | None = None) -> Row:
    """The row of a config.

    Args:
        path: where the config was read from.
        config: the config.
        shape: C, H, W of a picture; None takes the config's own, see :func:`picture_shape`.

    Raises:
        ValueError: see :func:`~tools.evidence.complexity.counting.complexity`; the message names the config.
    """
    shape = shape or picture_shape(config)
    model = build(config)
    try:
        inference, training = complexity(model, shape), complexity(model, shape, training=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    layers = [module for module in model.modules() if isinstance(module, CENorm) and module.branches]
    has_se = any(type(module).__name__ == "SELayer" for module in model.modules())
    for layer in layers:
        layer.branches, layer.bd, layer.ir, layer.mix = (), None, None, None
    return Row(
        config=str(path),
        network=f"{_network_name(config, model)}, {shape[1]}×{shape[2]}",
        kind="CE" if layers else "SE" if has_se else "baseline",
        batch_norm=any(isinstance(module, _BatchNorm) for module in model.modules()),
        shape=shape,
        inference=inference,
        training=training,
        without_ce=complexity(model, shape) if layers else inference,
    )


def in_all_stages(rows: Sequence[Row], configs: Mapping[Path, Config]) -> list[Row]:
    """One row more for each network with CE: its first config with CE in all stages, if that leaves some out.

    Args:
        rows: of the configs.
        configs: by the paths in the rows.
    """
    added = []
    for group in by_network(rows).values():
        row = next((row for row in group if row.kind == "CE"), None)
        config = None if row is None else _with_all_stages(configs[Path(row.config)])
        if config is not None:
            added.append(replace(measure(Path(row.config), config, row.shape), all_stages=True))
    return added


def _with_all_stages(config: Config) -> Config | None:
    """A copy with CE in all stages of its backbone; None where it has that, or no backbone that would choose."""
    settings = config.model.get("backbone") or {}
    network = getattr(backbones, str(settings.get("type")), None)
    choice = network and inspect.signature(network).parameters.get("ce_stages")
    stages = choice and settings.get("ce_stages", choice.default)
    if not stages or all(stages):
        return None
    config = copy.deepcopy(config)
    config.model.backbone.ce_stages = [True] * len(stages)
    return config


def _network_name(config: Config, model: nn.Module) -> str:
    """The network without what distinguishes CE, SE and norms: MaskRCNN ResNet-50, ShuffleNetV2 0.5×."""
    backbone = config.model.get("backbone") or {}
    name = type(getattr(model, "backbone", model)).__name__.removeprefix("CE").removeprefix("SE")
    if "depth" in backbone:
        name += f"-{backbone.depth}"
    elif "widen_factor" in backbone:
        name += f" {backbone.widen_factor:g}×"
    return name if config.model.type.endswith("ImageClassifier") else f"{config.model.type} {name}"


def by_network(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each network: baselines first, then SE, then CE, of each kind the shortest name first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.network, []).append(row)
    order = ["baseline", "SE", "CE"]
    for group in groups.values():
        group.sort(key=lambda row: (order.index(row.kind), row.all_stages, len(row.name)))
    return groups


def baseline(group: Sequence[Row]) -> Complexity:
    """What the rows of a network are compared with: the first baseline with BN, or else the first row without CE."""
    return next((row.inference for row in group if row.kind == "baseline" and row.batch_norm), group[0].without_ce)


def write(rows: Sequence[Row], folder: Path, command: str) -> None:
    """Write :data:`FILES`.

    Args:
        rows: at least one.
        folder: to write to, made if need be.
        command: what repeats the page.
    """
    numbers = dict(command=command, rois=ROIS, rows=[_numbers(row) for row in rows])
    page = _PAGE.format(command=command) + "".join(
        f"\n## {network}\n\n{markdown_table(group)}\n" for network, group in by_network(rows).items()
    )
    pages.write(folder, "complexity", page, numbers)
    draw(rows, folder / FILES[2])


def _numbers(row: Row) -> dict:
    numbers = asdict(row)
    for name in ("inference", "training", "without_ce"):
        numbers[name]["total"] = getattr(row, name).total
    return numbers


def markdown_table(group: Sequence[Row]) -> str:
    """A table of GitHub's Markdown for the rows of one network."""
    of = baseline(group)
    columns = ["", "", "parameters, M", "×", "inference, G", "×", *(f"{part}, M" for part in CE_PARTS), "training, G"]
    lines = []
    if all(row.inference != of for row in group):
        lines.append(["(without CE)", "baseline", *_cells(of, of), "–"])
    for row in group:
        lines.append(
            [row.name, row.kind, *_cells(row.inference, of), _figures(row.training.total / 1e9)]
        )
    return pages.table(columns, lines, words=(0, 1))


def _cells(counts: Complexity, of: Complexity) -> list[str]:
    parts = [getattr(counts, part) for part in CE_PARTS]
    return [
        _figures(counts.parameters / 1e6),
        f"{counts.parameters / of.parameters:.3f}",
        _figures(counts.total / 1e9),
        f"{counts.total / of.total:.3f}",
        *(_figures(part / 1e6) if part else "–" for part in parts),
    ]


def _figures(value: float) -> str:
    """Four figures, without an exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:#.4g}".rstrip(".")


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draw what SE and CE add to the baseline of their network, in parameters and in multiply-adds, by part."""
    from matplotlib.figure import Figure

    bars = list(_bars(rows))
    parts = [part for part in COLOURS if any(getattr(row.inference, part) != getattr(of, part) for row, of in bars)]
    figure = Figure(figsize=(13, 1.8 + 0.28 * max(len(bars), 2)), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, (row, of) in enumerate(bars):
        own = row.inference
        added = 100 * (own.parameters / of.parameters - 1)
        left.barh(place, added, color=COLOURS["layers"])
        _annotate(left, place, added, f"{_figures(own.parameters / 1e6)} M")
        start = 0
        for part in parts:
            width = 100 * (getattr(own, part) - getattr(of, part)) / of.total
            right.barh(place, width, left=start, color=COLOURS[part], label=None if place else part)
            start += width
        trained = 100 * (row.training.total / of.total - 1)
        right.plot(trained, place, "|", color="black", ms=9, mew=1.5, label=None if place else "in training mode")
        _annotate(right, place, max(start, trained), f"{_figures(own.total / 1e9)} G")
    left.set(title="parameters (number: in all)", yticks=range(len(bars)))
    left.set_yticklabels([row.name for row, _ in bars], fontsize="small")
    left.invert_yaxis()
    right.set(title="multiply-adds of inference (number: in all)")
    for axis in (left, right):
        axis.set_xlabel("% more than the network's baseline")
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    if bars:
        figure.legend(loc="outside upper right", ncols=6, frameon=False, fontsize="small")
    save_figure(figure, out)


def _bars(rows: Iterable[Row]) -> Iterator[tuple[Row, Complexity]]:
    """Each row with SE or CE and what it is compared with; the first of those in a network whose figures agree."""
    for group in by_network(rows).values():
        shown: dict[tuple[str, ...], Row] = {}
        for row in group:
            if row.kind != "baseline":
                counts = row.inference
                shown.setdefault((row.kind, _figures(counts.parameters / 1e6), _figures(counts.total / 1e9)), row)
        yield from ((row, baseline(group)) for row in shown.values())


def _annotate(axis, place: int, end: float, text: str) -> None:
    axis.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize="x-small")
