"""Quantise a classifier to int8 with onnxruntime, and say what that costs and gains on the config's own test data.

PYTHONPATH=. python tools/benchmark/int8.py CONFIG CHECKPOINT --out DIR

Writes int8_cpu.json and int8_cpu.md, a table: the figure that the config's test_evaluator gives first, the size of the
file, and the time of a batch over that of float32 in the same round. Static quantisation takes its ranges from pictures
of the training data. Needs pip install "ce_mm[export]".
"""
import argparse
import importlib.metadata
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import report
import torch
from measure import Clock, summarise, take_turns
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, DefaultScope
from settings import Settings
from torch import Tensor

from ce_mm.analysis import markdown
from ce_mm.analysis.instruments.source import Source
from ce_mm.compat.requirements import MissingRequirementError
from ce_mm.export import export
from ce_mm.export.formats import FORMATS
from ce_mm.export.pictures import reads_rgb
from ce_mm.export.runtimes import Network, load_onnx
from ce_mm.files import check_folder
from ce_mm.launching.config import read_config, type_name

#: Pictures that static ranges are taken from, and how many at a time.
CALIBRATION, BATCH = 200, 20
NOTES = (
    "*over float32*: the median, over the rounds, of the time of a batch over that of the ONNX file in float32 in the "
    "same round, with its quartiles. *ms*: the median time.",
)


def measure(config: str, checkpoint: str, warmup: int, rounds: int) -> dict[str, dict]:
    """Export, quantise, evaluate and time a classifier.

    Args:
        config, checkpoint: as of tools/export.py; the config's data sets must be there.
        warmup: rounds before the first that counts.
        rounds: rounds that count.

    Returns:
        What was done -> ``metric`` (its name), ``value``, ``megabytes``, and ``ms``, ``low``, ``ratio``, ``high`` of a
        batch of training pictures, over float32. PyTorch, the first, has the first two alone.
    """
    subject = Source(config, checkpoint).load()
    cfg = read_config(config)
    calibration, rgb = _training_pictures(cfg), reads_rgb(cfg)
    table = {"PyTorch, float32": dict(value=subject.evaluate(), metric=subject.metric)}
    with tempfile.TemporaryDirectory() as folder:
        float32 = Path(folder) / "float32.onnx"
        report.say("exporting")
        export(config, checkpoint, "onnx", float32)
        report.say("quantising")
        files = {"float32": float32} | quantise(float32, calibration)
        networks = {name: load_onnx(str(path)) for name, path in files.items()}
        for name, network in networks.items():
            report.say(f"evaluating {name}")
            subject.model = _Classifier(network, rgb)
            table[name] = dict(value=subject.evaluate(), metric=subject.metric)
            table[name]["megabytes"] = files[name].stat().st_size / 1e6
        clock, pictures = Clock(torch.device("cpu")), calibration[0]
        steps = {name: partial(clock.time, {"ms": partial(run, pictures)}) for name, run in networks.items()}
        times = summarise(take_turns(steps, warmup, rounds, report.progress("timing")), "float32")
    for name, row in times.items():
        table[name] |= row["ms"]
    return table


def quantise(float32: Path, calibration: Sequence[Tensor]) -> dict[str, Path]:
    """Quantise an ONNX file in several ways.

    Args:
        float32: as tools/export.py writes it; the others are written beside it.
        calibration: batches of RGB pictures (N, 3, H, W), float32 from 0 to 255.

    Returns:
        What was done -> the file.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(calibration)

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else dict(pictures=batch.numpy())

    files = {"int8, dynamic": float32.with_name("dynamic.onnx")}
    # Its convolutions with weights of no sign are the faster ones on a CPU.
    quantize_dynamic(float32, files["int8, dynamic"], weight_type=QuantType.QUInt8)
    nodes = onnx.load(float32).graph.node
    of_ce = [node.name for node in nodes if any("FoldedCE" in entry.value for entry in node.metadata_props)]
    for name, left_out in {"int8, static": [], "int8, static, CE in float32": of_ce}.items():
        files[name] = float32.with_name(f"static_without_{len(left_out)}_nodes.onnx")
        quantize_static(
            float32,
            files[name],
            Pictures(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            nodes_to_exclude=left_out,
        )
    return files


class _Classifier:
    """An ONNX file where an evaluation has a model of mmpretrain."""

    def __init__(self, network: Network, rgb: bool) -> None:
        self.network, self.rgb = network, rgb

    def test_step(self, batch: dict) -> list:
        """The samples of a batch with their scores, as a classifier gives them."""
        scores, _ = self.network(_as_rgb(batch["inputs"], self.rgb))
        samples = zip(batch["data_samples"], scores, strict=True)
        return [sample.set_pred_score(row).set_pred_label(row.argmax(0, keepdim=True)) for sample, row in samples]


def _as_rgb(pictures: Sequence[Tensor], rgb: bool) -> Tensor:
    batch = torch.stack(list(pictures)).float()
    return batch if rgb else batch.flip(1)


def _training_pictures(cfg: Config) -> list[Tensor]:
    """Batches of RGB pictures, spread evenly over the training data, prepared as for a test."""
    settings = _of_files(cfg, "train")
    settings.pipeline = _of_files(cfg, "test").pipeline
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(settings)
        count = min(CALIBRATION, len(dataset))
        chosen = [dataset[number * len(dataset) // count]["inputs"] for number in range(count)]
    rgb = reads_rgb(cfg)
    return [_as_rgb(chosen[start : start + BATCH], rgb) for start in range(0, count, BATCH)]


def _of_files(cfg: Config, part: str) -> ConfigDict:
    """The settings of a data set, or of the one inside those that repeat or balance it."""
    settings = cfg[f"{part}_dataloader"].dataset
    while "pipeline" not in settings:
        if "dataset" not in settings:
            raise ValueError(f"{part}_dataloader: expected one data set with a pipeline, got {type_name(settings)}")
        settings = settings.dataset
    return settings


def page(numbers: dict) -> str:
    """The table as a page of Markdown."""
    table = numbers["table"]
    metric = next(iter(table.values()))["metric"]
    rows = []
    for name, row in table.items():
        timed = [f"{row['megabytes']:.2f}", f"{row['ms']:.3g}", report.ratio_text(row)] if "ms" in row else ["–"] * 3
        rows.append([name, f"{row['value']:.2f}", *timed])
    columns = ["", metric, "MB", "ms", "over float32"]
    return f"{report.heading('A classifier in int8', numbers)}\n\n{markdown.table(columns, rows)}"


def main(arguments: Sequence[str]) -> int:
    """Parse the arguments, measure and write; bad input ends with one line and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of a classifier")
    parser.add_argument("checkpoint", help="weights that fit it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the numbers (.json) and the table (.md)")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before the first that counts")
    parser.add_argument("--rounds", type=int, default=20, help="rounds that count, at least 2")
    args = parser.parse_args(arguments)
    try:
        settings = Settings("cpu", BATCH, "float32", "contiguous", args.warmup, args.rounds)
        FORMATS["onnx"].require("onnx")
        inputs = Path(args.config), Path(args.checkpoint).expanduser()
        check_folder(args.out, ("int8_cpu.json", "int8_cpu.md"), inputs)
        logging.disable(logging.WARNING)  # onnxruntime's advice, a line for each layer
        numbers = dict(
            command=report.command_line("int8", arguments),
            machine=report.machine("cpu"),
            settings=asdict(settings),
            table=measure(args.config, args.checkpoint, args.warmup, args.rounds),
            notes=[*NOTES, f"onnxruntime {importlib.metadata.version('onnxruntime')}, as many threads as PyTorch."],
        )
        args.out.mkdir(parents=True, exist_ok=True)
        report.write(args.out, "int8_cpu", numbers, page(numbers))
    except (ValueError, OSError, MissingRequirementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
