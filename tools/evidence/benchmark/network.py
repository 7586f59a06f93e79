"""Measure whole networks with CE: python -m tools.evidence.benchmark.network --out DIR.

The training step (forward, gradient, backward, no optimizer), inference and memory, with CE, plain and compiled,
against BN, taking turns in one run. ``--torch-only`` (and a machine without OpenMMLab's packages) leaves the first of:

resnet50-torch  ResNet-50 in plain PyTorch, with every layer of op.py in CE's places (SE in its own)
resnet50        mmpretrain's ResNet-50 and SE-ResNet-50, and CE-ResNet-50
mobilenetv2     mmpretrain's MobileNetV2, and with CE at the depthwise convolutions
shufflenetv2    mmpretrain's ShuffleNetV2 1×, and with CE at the last convolution of each unit
vgg16           mmpretrain's VGG-16 with BN, and with CE at every convolution
mask-rcnn       mmdet's Mask R-CNN R50, and with CE, on two pictures of 320×320
demo            the Mask R-CNN of tools/demo.sh, and with BN, on its batch of four pictures of 192×160
"""
import argparse
import gc
import sys
from collections.abc import Sequence
from functools import partial

import torch

from tools.evidence.benchmark import backends, front, mm_networks, records
from tools.evidence.benchmark.cases import Case, backbone_case
from tools.evidence.benchmark.layers import VARIANTS
from tools.evidence.benchmark.measure import Clock, measure_cases
from tools.evidence.benchmark.resnet import BLOCKS, resnet50
from tools.evidence.benchmark.settings import Settings

NOTES = (
    "A ratio is the median, over the rounds, of a network's time over the one with BN in the same round, with its "
    "quartiles; the time is the median. *saved*: bytes kept for the backward pass, each storage once, without "
    "parameters. *peak*: the most that is allocated at one time in a training step, through PyTorch, beside the "
    "pictures and the parameters.",
    backends.NOTE,
    "On a GPU the times are those of its work alone; *wall* is one step with all its launches, "
    "*host* what Python takes to launch them.",
)


def resnet50_torch(settings: Settings) -> dict[str, Case]:
    """ResNet-50 (one block a stage if quick) with each variant: SE at the end of all blocks, others in CE's places."""
    cases, blocks = {}, (1, 1, 1, 1) if settings.quick else BLOCKS
    for name, layer in VARIANTS.items():
        se = name == "BN+SE"
        backbone = resnet50(layer, stem=not se, stages=(True, True, True, se), blocks=blocks)
        cases[name] = backbone_case(backbone, settings)
    return cases


NETWORKS = {
    "resnet50-torch": resnet50_torch,
    "resnet50": mm_networks.resnet50,
    "mobilenetv2": partial(mm_networks.backbones, "MobileNetV2"),
    "shufflenetv2": partial(mm_networks.backbones, "ShuffleNetV2"),
    "vgg16": partial(mm_networks.backbones, "VGG", depth=16, norm_cfg=dict(type="BN")),
    "mask-rcnn": mm_networks.mask_rcnn,
    "demo": mm_networks.demo,
}


def run(settings: Settings, networks: Sequence[str]) -> dict:
    """Measure and return all numbers; networks whose packages are missing are left out."""
    torch.backends.cudnn.benchmark = True
    clock, notes, results = Clock(torch.device(settings.device)), backends.notes(settings), {}
    for name in networks:
        try:
            cases = backends.on_each(NETWORKS[name](settings), settings)
        except ImportError as error:
            notes.append(f"{name} is left out: {error}")
            records.say(notes[-1])
            continue
        progress = records.progress(name)
        results[name] = measure_cases(cases, clock, settings.warmup, settings.rounds, progress)
        del cases
        gc.collect()  # the functions of a case refer to their network, which would stay until Python looks for cycles
    return dict(notes=notes, networks=results)


def sections(record: dict) -> records.Sections:
    """A section for each network."""
    return {network: records.figure_rows(variants) for network, variants in record["networks"].items()}


BENCHMARK = records.Benchmark("network", "Whole networks with CE", NOTES, sections)


def main(arguments: Sequence[str]) -> int:
    """Parse the arguments, measure and write; bad input ends with one line and status 2."""
    parser = front.make_parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all")
    parser.add_argument("--torch-only", action="store_true", help="resnet50-torch alone")
    rounds = dict(cpu=dict(warmup=1, rounds=6), cuda=dict(warmup=5, rounds=20))

    def measure(settings: Settings, args: argparse.Namespace) -> dict:
        return run(settings, ["resnet50-torch"] if args.torch_only else args.networks)

    return front.run(BENCHMARK, parser, arguments, rounds, measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
