"""Quantise a classifier to int8 with onnxruntime, and say what that costs and gains on the config's own test data.

python -m tools.evidence.benchmark.int8 CONFIG CHECKPOINT --out DIR

Adds to int8.json and int8.md: the figure that the config's test_evaluator gives first, the size of the
file, and the time of a batch over that of float32 in the same round. Static quantisation takes its ranges from pictures
of the training data. Needs pip install "ce_mm[export]".
"""
import argparse
import importlib.metadata
import logging
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor

from ce_mm.analysis.instruments.source import Source
from ce_mm.export import export
from ce_mm.export.formats import FORMATS
from ce_mm.export.pictures import reads_rgb
from ce_mm.export.runtimes import Network, load_onnx
from ce_mm.launching.config import read_config, type_name
from tools.evidence.benchmark import front, records
from tools.evidence.benchmark.measure import Clock, summarise, take_turns
from tools.evidence.benchmark.settings import Settings

#: Pictures that static ranges are taken from.
CALIBRATION = 200
NOTES = (
    "*over float32*: the median, over the rounds, of the time of a batch over that of the ONNX file in float32 in the "
    "same round, with its quartiles. *ms*: the median time.",
)


def measure(settings: Settings, args: argparse.Namespace) -> dict:
    """Export, quantise, evaluate and time a classifier.

    Args:
        settings: of the run.
        args: ``config`` and ``checkpoint`` as of tools/export.py; the config's data sets must be there.

    Returns:
        ``table``: what was done -> ``metric`` (its name), ``value``, ``megabytes``, and ``ms``, ``low``, ``ratio``,
        ``high`` of a batch of training pictures, over float32. PyTorch, the first, has the first two alone.
    """
    front.check_plain(settings)
    FORMATS["onnx"].require("onnx")
    logging.disable(logging.WARNING)  # onnxruntime's advice, a line for each layer
    subject = Source(args.config, args.checkpoint).load()
    cfg = read_config(args.config)
    calibration, rgb = _training_pictures(cfg, settings.batch), reads_rgb(cfg)
    table = {"PyTorch, float32": dict(value=subject.evaluate(), metric=subject.metric)}
    with tempfile.TemporaryDirectory() as folder:
        float32 = Path(folder) / "float32.onnx"
        records.say("exporting")
        export(args.config, args.checkpoint, "onnx", float32)
        records.say("quantising")
        files = {"float32": float32} | quantise(float32, calibration)
        networks = {name: load_onnx(str(path)) for name, path in files.items()}
        for name, network in networks.items():
            records.say(f"evaluating {name}")
            subject.model = _Classifier(network, rgb)
            table[name] = dict(value=subject.evaluate(), metric=subject.metric)
            table[name]["megabytes"] = files[name].stat().st_size / 1e6
        clock, pictures = Clock(torch.device("cpu")), calibration[0]
        steps = {name: partial(clock.time, {"ms": partial(run, pictures)}) for name, run in networks.items()}
        times = take_turns(steps, settings.warmup, settings.rounds, records.progress("timing"))
    for name, row in summarise(times, "float32").items():
        table[name] |= row["ms"]
    onnxruntime = importlib.metadata.version("onnxruntime")
    return dict(notes=[f"onnxruntime {onnxruntime}, as many threads as PyTorch"], table=table)


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


def _training_pictures(cfg: Config, batch: int) -> list[Tensor]:
    """Batches of RGB pictures, spread evenly over the training data, prepared as for a test."""
    settings = _of_files(cfg, "train")
    settings.pipeline = _of_files(cfg, "test").pipeline
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(settings)
        count = min(CALIBRATION, len(dataset))
        chosen = [dataset[number * len(dataset) // count]["inputs"] for number in range(count)]
    rgb = reads_rgb(cfg)
    return [_as_rgb(chosen[start : start + batch], rgb) for start in range(0, count, batch)]


def _of_files(cfg: Config, part: str) -> ConfigDict:
    """The settings of a data set, or of the one inside those that repeat or balance it."""
    settings = cfg[f"{part}_dataloader"].dataset
    while "pipeline" not in settings:
        if "dataset" not in settings:
            raise ValueError(f"{part}_dataloader: expected one data set with a pipeline, got {type_name(settings)}")
        settings = settings.dataset
    return settings


def sections(record: dict) -> records.Sections:
    """One section, with accuracy, size and time of each kind."""
    rows = {}
    for name, row in record["table"].items():
        rows[name, row["metric"]] = f"{row['value']:.2f}"
        if "ms" in row:
            rows[name, "MB"] = f"{row['megabytes']:.2f}"
            rows[name, "ms"] = f"{row['ms']:.3g}"
            rows[name, "over float32"] = records.ratio_text(row)
    return {"Accuracy, size and time": rows}


BENCHMARK = records.Benchmark("int8", "A classifier in int8", NOTES, sections)


def main(arguments: Sequence[str]) -> int:
    """Parse the arguments, measure and write; bad input ends with one line and status 2."""
    parser = front.make_parser(__doc__)
    parser.set_defaults(device="cpu")
    parser.add_argument("config", help="config of a classifier")
    parser.add_argument("checkpoint", help="weights that fit it")
    rounds = {device: dict(batch=20, warmup=3, rounds=20) for device in ("cpu", "cuda")}
    return front.run(BENCHMARK, parser, arguments, rounds, measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
