"""What commit ba6f369 wrote: this script made the files beside it, by that commit's code and with PyTorch 2.14.1.

    git worktree add ../ba6f369 ba6f369
    PYTHONPATH=../ba6f369:../ba6f369/tests python tests/checkpoints/ba6f369/write.py

Later code is held against them, so they are not written again. They are compressed, and hold numbers of few bits, to be
small. All results were computed in float64, from the float32 values in the state dicts, and rounded to float32.

* ``layers.pth.xz``: CENorms, each with its ``arguments``, ``state_dict``, an input ``x``, the outputs ``eval`` in
  inference and ``train`` in a training step after it, and the ``buffers`` after that step.
* ``ce-*.pth.xz``: a checkpoint of a narrow network of each family. Under ``meta`` are the ``backbone`` and the same
  results: of its last map the first 64 channels, and the buffers of its last CE layer.
* ``authors.pth.xz``: weights in the CE authors' layout, converted to a classifier.
* ``names.json.xz``: names and shapes in state dicts, in order: of the model of each config with CE, by its path; and of
  backbones with every base norm, choice of branches and depth, by their arguments as JSON.
"""
import io
import itertools
import json
import lzma
import tempfile
from copy import deepcopy
from pathlib import Path

import torch
from authors_layout import authors_shapes, authors_weights
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import ce_mm
from ce_mm.checkpoints.convert import convert
from ce_mm.layers import CENorm

HERE = Path(__file__).parent
CONFIGS = Path(ce_mm.__file__).parents[1] / "configs"

BN, GN, SN = dict(type="BN"), dict(type="GN", num_groups=2), dict(type="SN")
NORMS = [BN, dict(type="SyncBN"), GN, dict(type="IN", affine=True), dict(type="LN"), SN]
BRANCHES = [("bd", "ir"), ("bd",), ("ir",), ()]
LAYERS = [
    *(dict(norm=norm) for norm in NORMS),
    *(dict(norm=norm, branches=branches) for norm in (BN, GN) for branches in BRANCHES[1:]),
    dict(norm=SN, branches=()),
    *(dict(norm=norm, **more) for norm in (BN, GN) for more in (dict(max_pool=True), dict(correction=1))),
    *(dict(norm=norm, num_features=58) for norm in (BN, GN)),  # in groups of 2
]
NETWORKS = {
    "ce-resnet18": dict(type="CEResNet", depth=18, stem_channels=4, base_channels=4),
    "ce-resnet50": dict(type="CEResNet", depth=50, stem_channels=4, base_channels=2, ce_cfg=dict(correction=1)),
    "ce-mobilenet-v2": dict(type="CEMobileNetV2", widen_factor=0.05, out_indices=(6,)),
    "ce-shufflenet-v2": dict(type="CEShuffleNetV2", widen_factor=0.5, out_indices=(2,)),
    "ce-vgg": dict(type="CEVGG", depth=11, ce_cfg=dict(branches=("ir",), reduction=16)),
}
FAMILY = [
    *(dict(type="CEResNet", depth=depth) for depth in (18, 50)),
    dict(type="CEMobileNetV2"), dict(type="CEShuffleNetV2"), dict(type="CEVGG", depth=11),
]  # fmt: skip
BACKBONES = [
    *(backbone | dict(ce_cfg=dict(norm=norm)) for backbone, norm in itertools.product(FAMILY, NORMS)),
    *(backbone | dict(ce_cfg=dict(branches=chosen)) for backbone, chosen in itertools.product(FAMILY, BRANCHES[1:])),
    *(dict(type="CEVGG", depth=depth) for depth in (13, 16, 19)),
    *(dict(type="CEShuffleNetV2", widen_factor=width) for width in (1.5, 2.0)),
    dict(type="CEVGG", depth=11, num_classes=10),
    dict(type="CEResNet", depth=50, deep_stem=True),
    dict(type="CEResNet", depth=50, ce_cfg=dict(max_pool=True, correction=1), ce_stem_cfg=dict(group_size=64)),
    dict(type="CEResNet", depth=50, ce_stages=[True] * 4),
]


def write(name, content):
    (HERE / f"{name}.xz").write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


def saved(checkpoint):
    content = io.BytesIO()
    torch.save(checkpoint, content)
    return content.getvalue()


def train(forward, parameters, x):
    """A few steps, so that no parameter or buffer is as it starts."""
    optimizer = torch.optim.Adam(parameters, lr=0.1, eps=1e-30)  # a bias in front of a norm has a gradient near 0
    for _ in range(4):
        y = forward(x + torch.randn_like(x))
        optimizer.zero_grad()
        (y * torch.randn_like(y)).mean().backward()
        optimizer.step()


def thin(state_dict):
    """Leave the two largest values of each row of a matrix and of each filter, as 1/2 and -1/2."""
    for name, value in state_dict.items():
        if name.endswith("weight") and value.dim() > 1:
            rows = value.flatten(1)
            largest = rows.abs().topk(min(2, rows.shape[1])).indices
            value.copy_(torch.zeros_like(rows).scatter(1, largest, rows.gather(1, largest).sign() / 2).view_as(value))


def coarse(state_dict):
    """Round to multiples of 1/16."""
    for name, value in state_dict.items():
        if value.is_floating_point():
            value.copy_((16 * value).round() / 16)
            if name.endswith("running_var"):
                value.clamp_(min=1 / 16)


@torch.no_grad()
def results(model, forward, x, last):
    """What ``forward`` computes in float64; the buffers are those of ``last``, a part of the model."""
    model.double()
    outputs = {}
    for mode in ("eval", "train"):
        model.train(mode == "train")
        outputs[mode] = forward(x.double()).float()
    buffers = {name: value.float() if value.is_floating_point() else value for name, value in last.named_buffers()}
    return dict(x=x, **outputs, buffers=buffers)


def layer(arguments):
    torch.manual_seed(0)
    arguments = dict(num_features=32, reduction=8) | arguments
    ce = CENorm(**arguments)
    size = (4, 4) if "max_pool" in arguments else (2, 3)
    x = 3 * torch.randn(3, ce.num_features, *size) + 2 * torch.randn(ce.num_features, 1, 1)
    train(ce, ce.parameters(), x)
    coarse(ce.state_dict() | dict(x=x))
    return dict(arguments=arguments, state_dict=deepcopy(ce.state_dict())) | results(ce, ce, x, ce)


def network(backbone):
    torch.manual_seed(0)
    model = MODELS.build(backbone)
    x = torch.randint(-1, 2, (2, 3, 48, 48)).float()
    train(lambda x: model(x)[-1], model.parameters(), x)
    thin(model.state_dict())
    for _ in range(20):  # until the buffers have followed
        model(x)
    coarse(model.state_dict())
    state_dict = deepcopy(model.state_dict())
    last = [module for module in model.modules() if isinstance(module, CENorm)][-1]
    meta = dict(backbone=backbone) | results(model, lambda x: model(x)[-1][:, :64], x, last)
    return dict(meta=meta, state_dict=state_dict)


def authors():
    """A converted checkpoint; what it was made of is in it."""
    weights = authors_weights(authors_shapes(4))
    thin(weights)
    coarse(weights)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, Path(folder, "theirs.pth"))
        convert(Path(folder, "theirs.pth"), Path(folder, "authors.pth"), target="classifier")
        return Path(folder, "authors.pth").read_bytes()


def names(model, scope="mmpretrain"):
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(model)
    assert any(isinstance(module, CENorm) for module in model.modules())
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def all_names():
    """By the path of a config, or by a backbone's arguments as JSON."""
    configs = {path: Config.fromfile(CONFIGS / path) for path in sorted(CONFIGS.glob("*/*ce-*.py"))}
    found = {str(path.relative_to(CONFIGS)): names(cfg.model, cfg.default_scope) for path, cfg in configs.items()}
    return found | {json.dumps(backbone): names(backbone) for backbone in BACKBONES}


def main():
    write("layers.pth", saved([layer(arguments) for arguments in LAYERS]))
    for name, backbone in NETWORKS.items():
        write(f"{name}.pth", saved(network(backbone)))
    write("authors.pth", authors())
    write("names.json", json.dumps(all_names()).encode())


if __name__ == "__main__":
    main()
