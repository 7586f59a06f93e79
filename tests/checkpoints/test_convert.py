"""convert: what comes out is complete, tried, and there whole or not at all; the source is never touched."""
import ast
import hashlib
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from ce_mm.checkpoints.convert import convert
from ce_mm.checkpoints.reading import CheckpointError, read_checkpoint
from ce_mm.files import DestinationError

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = dict(type="CEResNet", depth=18, stem_channels=8, base_channels=8)
CLASSIFIER = dict(
    type="ImageClassifier",
    backbone=BACKBONE,
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=4, in_channels=64),
)


def build(model):
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(Config(dict(model=model)).model)


def contents(folder):
    """Names and contents of all files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def weights():
    return build(CLASSIFIER).state_dict()


@pytest.fixture
def save(tmp_path):
    def save(weights, **more):
        path = tmp_path / "epoch_1.pth"
        torch.save(dict(meta=dict(epoch=1), state_dict=weights, optimizer=dict(state={})) | more, path)
        return path

    return save


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def backbone_of(weights):
    return {name.removeprefix("backbone."): value for name, value in weights.items() if name.startswith("backbone.")}


def test_the_default_is_the_backbone_of_a_classifier_under_its_own_names(weights, save, tmp_path):
    report = convert(save(weights), tmp_path / "new" / "backbone.pth")
    written = torch.load(tmp_path / "new" / "backbone.pth", weights_only=True)
    assert set(written) == {"meta", "state_dict"}
    assert same(written["state_dict"], backbone_of(weights))
    assert (report.network.layout, report.network.config, report.initialised) == ("mmpretrain", BACKBONE, [])
    assert report.left_out == ["head.fc.weight", "head.fc.bias"]
    assert report.files == (tmp_path / "new" / "backbone.pth", tmp_path / "new" / "backbone.py")


def test_optimizer_and_logs_are_dropped_and_the_names_of_the_classes_kept(weights, save, tmp_path):
    logs = dict(message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1]))), param_schedulers=[dict(a=1)])
    meta = dict(epoch=1, best=np.float64(0.5), dataset_meta=dict(classes=("a", "b", "c", "d"), palette=[1]))
    convert(save(weights, **logs, meta=meta), tmp_path / "classifier.pth", target="classifier")
    written = torch.load(tmp_path / "classifier.pth", weights_only=True)
    assert set(written) == {"meta", "state_dict"} and same(written["state_dict"], weights)
    assert set(written["meta"]) == {"ce_mm_version", "cfg", "dataset_meta"}
    assert written["meta"]["dataset_meta"] == dict(classes=["a", "b", "c", "d"])


def test_names_of_a_wrapped_model_are_understood(weights, tmp_path):
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "wrapped.pth")
    convert(tmp_path / "wrapped.pth", tmp_path / "backbone.pth")
    assert same(read_checkpoint(tmp_path / "backbone.pth")["state_dict"], backbone_of(weights))


def test_the_backbone_of_a_detector_is_taken_out(weights, save, tmp_path):
    detector = {n: v for n, v in weights.items() if n.startswith("backbone.")} | {"neck.conv.weight": torch.zeros(1)}
    report = convert(save(detector), tmp_path / "backbone.pth")
    assert (report.network.layout, report.left_out) == ("mmdet", ["neck.conv.weight"])
    assert same(read_checkpoint(tmp_path / "backbone.pth")["state_dict"], backbone_of(weights))


def test_a_bare_backbone_is_converted_to_itself(weights, tmp_path):
    torch.save(backbone_of(weights), tmp_path / "bare.pth")
    report = convert(tmp_path / "bare.pth", tmp_path / "again.safetensors", layout="backbone")
    assert report.left_out == []
    assert same(read_checkpoint(tmp_path / "again.safetensors")["state_dict"], backbone_of(weights))


@pytest.mark.parametrize("target", ["backbone", "classifier"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_config_beside_builds_what_loads_the_weights(weights, save, tmp_path, target, suffix):
    convert(save(weights), tmp_path / f"ours{suffix}", target=target)
    config = Config.fromfile(tmp_path / "ours.py")
    assert config.custom_imports.imports == ["ce_mm"]
    model = build(config.model if target == "classifier" else config.model.backbone)
    model.load_state_dict(read_checkpoint(tmp_path / f"ours{suffix}")["state_dict"], strict=True)


def test_what_leaves_no_trace_in_weights_is_taken_from_the_recorded_config(save, tmp_path):
    special = dict(
        BACKBONE, type="mmpretrain.CEResNet", norm_cfg=dict(type="GN", num_groups=2), style="caffe", num_stages=4,
        ce_cfg=dict(correction=1, iterations=5), frozen_stages=1, norm_eval=True, out_indices=[0, 1, 2, 3],
        init_cfg=dict(type="Pretrained", checkpoint="x.pth"),
    )  # fmt: skip
    model = build(CLASSIFIER | dict(backbone=special | dict(type="CEResNet", init_cfg=None)))
    recorded = Config(dict(model=CLASSIFIER | dict(backbone=special))).pretty_text
    report = convert(save(model.state_dict(), meta=dict(cfg=recorded)), tmp_path / "ours.pth")
    expected = BACKBONE | {name: special[name] for name in ("norm_cfg", "style", "ce_cfg")}
    assert report.network.config == expected and report.network.settings_known
    again = convert(tmp_path / "ours.pth", tmp_path / "again.pth")
    assert again.network.config == expected, "the file itself records it too"


def test_where_no_config_is_recorded_the_report_says_what_is_assumed(weights, save, tmp_path):
    report = convert(save(weights), tmp_path / "ours.pth")
    assert not report.network.settings_known and "taken to be the defaults" in str(report)


def test_a_published_name_has_the_digits_of_its_hash(weights, save, tmp_path):
    report = convert(save(weights), tmp_path / "out" / "ce-r18.pth", publish=True)
    digits = hashlib.sha256(report.files[0].read_bytes()).hexdigest()
    assert report.sha256 == digits
    assert sorted(os.listdir(tmp_path / "out")) == [f"ce-r18-{digits[:8]}.pth", f"ce-r18-{digits[:8]}.py"]
    report.files[0].write_text("mine")
    with pytest.raises(DestinationError, match=f"ce-r18-{digits[:8]}.pth exists already"):
        convert(save(weights), tmp_path / "out" / "ce-r18.pth", publish=True)
    assert report.files[0].read_text() == "mine"


@pytest.mark.parametrize("publish", [False, True])
@pytest.mark.parametrize("left", [[], ["ours.pth"], ["ours.py"], ["ours.pth", "ours.py"]], ids=str)
def test_a_conversion_that_was_killed_is_finished_by_the_same_one(weights, save, tmp_path, left, publish):
    source = save(weights)
    report = convert(source, tmp_path / "ours.pth", publish=publish)
    complete = contents(tmp_path)
    for path in report.files:
        if f"ours{path.suffix}" not in left:
            path.unlink()
    assert convert(source, tmp_path / "ours.pth", publish=publish).files == report.files
    assert contents(tmp_path) == complete


def test_the_hash_is_the_same_each_time_also_where_ce_is_initialised(weights, tmp_path):
    plain = {name.replace(".norm.", "."): v for name, v in weights.items() if name.split(".")[-2] != "fc"}
    plain = {n: v for n, v in plain.items() if ".bd." not in n and ".ir." not in n and not n.endswith(".mix")}
    torch.save(plain, tmp_path / "plain.pth")
    torch.manual_seed(1)
    reports = [convert(tmp_path / "plain.pth", tmp_path / f"{place}.pth") for place in ("a", "b")]
    assert reports[0].initialised and reports[0].sha256 == reports[1].sha256
    torch.manual_seed(1)
    state = torch.get_rng_state()
    convert(tmp_path / "plain.pth", tmp_path / "c.pth")
    assert torch.equal(torch.get_rng_state(), state), "nobody's random numbers are moved on"


def test_a_dry_run_says_the_same_and_writes_nothing(weights, save, tmp_path):
    source = save(weights)
    before = contents(tmp_path)
    dry = convert(source, tmp_path / "new" / "ours.pth", dry_run=True)
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()
    real = convert(source, tmp_path / "new" / "ours.pth")
    assert (dry.sha256, dry.mapped, dry.files) == (real.sha256, real.mapped, real.files)
    assert "would write" in str(dry) and "would write" not in str(real)


def test_the_report_names_patterns_the_hash_and_the_files(weights, save, tmp_path):
    report = convert(save(weights), tmp_path / "ours.pth")
    lines = str(report).splitlines()
    assert lines[0].endswith("layout mmpretrain, network CEResNet(depth=18, stem_channels=8, base_channels=8)")
    assert f"{len(report.mapped):6d}  backbone.* → *" in lines
    assert f"SHA-256 {report.sha256}" in lines and f"wrote {tmp_path / 'ours.py'}" in lines


def changed(weights, changes):
    weights = dict(weights)
    for name, value in changes.items():
        weights.pop(name) if value is None else weights.update({name: value})
    return weights


CONV, VARIANCE = "backbone.conv1.weight", "backbone.layer1.0.bn1.running_var"
WHITENING = "backbone.layer1.0.bn2.bd.running_whitening"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({VARIANCE: None}, r"no value for layer1.0.bn1.running_var; expected"),
        ({WHITENING: None, "backbone.bn1.mix": None}, "no value for bn1.mix and 1 more"),
        ({"backbone.layer1.0.bn9.weight": torch.ones(8)}, "CEResNet has no place for backbone.layer1.0.bn9.weight;"),
        ({"backbone.bn1.weight": torch.ones(8)}, "backbone.bn1.weight is there twice"),
        ({"backbone.layer1.0.conv1.weight": None}, "layer1.0.conv1.weight is missing"),
        ({CONV: torch.ones(7, 3, 7, 7)}, r"no value for .* expected the weights of .*'stem_channels': 7"),
        ({CONV: torch.ones(8, 3, 5, 5)}, rf"{CONV} has the shape \(8, 3, 5, 5\); expected \(8, 3, 7, 7\)"),
        ({VARIANCE: torch.ones(8).to(torch.float8_e4m3fn)}, "float8_e4m3fn; expected a floating-point type of 16 bits"),
        ({VARIANCE: torch.zeros(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, "float4_e2m1fn_x2"),
        ({VARIANCE: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])}, "is no plain tensor"),
        ({VARIANCE: torch.ones(9)}, rf"{VARIANCE} has the shape \(9,\); expected \(8,\)"),
        ({VARIANCE: torch.ones(8).long()}, f"{VARIANCE} is of type torch.int64; expected a floating-point type"),
        ({VARIANCE: torch.ones(8).bool()}, "torch.bool"),
        ({VARIANCE: torch.ones(8, dtype=torch.complex64)}, "torch.complex64"),
        ({VARIANCE: torch.full((8,), torch.nan)}, f"{VARIANCE} holds NaN or infinite"),
        ({VARIANCE: torch.full((8,), -1.0)}, "output for a random picture is not finite.*negative"),
        ({VARIANCE: torch.ones(8).to_sparse()}, "is no plain tensor"),
        ({VARIANCE: 3}, f"expected a tensor for every name, but '{VARIANCE}' is int"),
        ({f"module.{VARIANCE}": torch.ones(8)}, "there twice, with and without 'module.'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(weights, save, tmp_path, changes, message):
    source = save(changed(weights, changes))
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(source, tmp_path / "ours.pth")
    assert str(caught.value).startswith(f"{source}: ") and str(caught.value).count(str(source)) == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("target", ["classifier", "authors"])
def test_a_backbone_alone_makes_no_classifier(weights, tmp_path, target):
    torch.save(backbone_of(weights), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"no linear classifier .* choose the target 'backbone'"):
        convert(tmp_path / "bare.pth", tmp_path / "ours.pth", target=target)


@pytest.mark.parametrize(
    "backbone",
    [
        dict(type="CEMobileNetV2", widen_factor=0.35),
        dict(type="CEShuffleNetV2", widen_factor=0.5),
        dict(type="CEVGG", depth=11),
    ],
    ids=lambda config: config["type"],
)
def test_classifiers_of_the_other_backbones_too(save, tmp_path, backbone):
    channels = dict(CEMobileNetV2=1280, CEShuffleNetV2=1024, CEVGG=512)[backbone["type"]]
    head = dict(type="LinearClsHead", num_classes=3, in_channels=channels)
    weights = build(CLASSIFIER | dict(backbone=backbone, head=head)).state_dict()
    report = convert(save(weights), tmp_path / "ours.pth", target="classifier")
    assert (report.network.config, report.left_out, report.initialised) == (backbone, [], [])
    assert same(read_checkpoint(tmp_path / "ours.pth")["state_dict"], weights)


def test_the_name_of_the_source_changes_no_byte(weights, tmp_path):
    for name in ("a", "b"):
        torch.save(weights, tmp_path / f"{name}.pth")
    digests = {convert(tmp_path / f"{name}.pth", tmp_path / f"{name}-ours.pth").sha256 for name in ("a", "b")}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "backbone",
    [
        dict(type="CEResNet", depth=18, base_channels=32, norm_cfg=dict(type="GN", num_groups=2),
             ce_stem_cfg=dict(group_size=64)),
        dict(BACKBONE, deep_stem=True, norm_cfg=dict(type="GN", num_groups=2)),
        dict(BACKBONE, norm_cfg=dict(type="SN"), act_cfg=dict(type="LeakyReLU", negative_slope=0.1)),
        dict(type="CEMobileNetV2", widen_factor=0.33),
        dict(type="CEVGG", depth=11, norm_cfg=dict(type="IN")),
    ],
    ids=str,
)  # fmt: skip
def test_a_recorded_config_is_kept(save, tmp_path, backbone):
    weights = {f"backbone.{name}": value for name, value in MODELS.build(backbone).state_dict().items()}
    source = save(weights, meta=dict(cfg=Config(dict(model=dict(backbone=backbone))).pretty_text))
    assert convert(source, tmp_path / "ours.pth").network.config == backbone


def test_without_it_other_base_norms_are_not_known(save, tmp_path):
    backbone = MODELS.build(dict(BACKBONE, norm_cfg=dict(type="GN", num_groups=2)))
    with pytest.raises(CheckpointError, match=r"no place for gn1.mix .*records no config in meta\['cfg'\]"):
        convert(save(backbone.state_dict()), tmp_path / "ours.pth")


def test_a_classifier_whose_neck_has_weights_is_none_of_ours(weights, save, tmp_path):
    source = save(weights | {"neck.p": torch.ones(1)})
    assert convert(source, tmp_path / "backbone.pth").network.layout == "mmpretrain"
    with pytest.raises(CheckpointError, match=r"neck\.p has no place"):
        convert(source, tmp_path / "classifier.pth", target="classifier")


@pytest.mark.parametrize("name", ["new\nimport os", "new'"])
def test_a_name_is_no_code_in_the_config(weights, save, tmp_path, name):
    convert(save(weights), tmp_path / f"{name}.pth")
    assert set(Config.fromfile(tmp_path / f"{name}.py")) == {"custom_imports", "model"}
    written = ast.parse((tmp_path / f"{name}.py").read_text()).body
    assert [ast.unparse(statement.targets[0]) for statement in written] == ["custom_imports", "model"]


def test_a_recorded_config_that_does_not_build_is_said_to_be_so(weights, save, tmp_path):
    recorded = Config(dict(model=dict(backbone=BACKBONE | dict(ce_cfg=dict(group_size=0))))).pretty_text
    with pytest.raises(CheckpointError, match=r"cannot be built: ValueError: .*group_size must be"):
        convert(save(weights, meta=dict(cfg=recorded)), tmp_path / "ours.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(norm_cfg=dict(type="BN", eps="small")), "cannot be (run|built): .*small|'str'"),
        (dict(norm_cfg=dict(type="BN", device="meta")), "cannot be (run|built): .*meta"),
        (dict(act_cfg=dict(type="LeakyReLU", negative_slope="text")), "cannot be run: TypeError: .*negative_slope"),
        (dict(act_cfg=dict(type="RReLU", lower=1, upper=0)), "cannot be run: RuntimeError: Lower bound"),
        (dict(act_cfg=dict(type="GELU", approximate=3)), "cannot be run: TypeError: .*approximate"),
    ],
    ids=str,
)
def test_odd_values_in_a_recorded_config_are_said_in_one_line(weights, save, tmp_path, changes, message):
    recorded = Config(dict(model=dict(backbone=BACKBONE | changes))).pretty_text
    source = save(weights, meta=dict(cfg=recorded))
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(source, tmp_path / "ours.pth")
    assert "\n" not in str(caught.value) and not (tmp_path / "ours.pth").exists()


@pytest.mark.parametrize("meta", [3, [1], dict(cfg=3), dict(authors=[1]), dict(authors=dict(originals=3)),
                                  dict(dataset_meta=3), dict(dataset_meta=dict(classes=3))], ids=str)  # fmt: skip
def test_what_is_recorded_in_another_form_is_passed_over(weights, save, tmp_path, meta):
    report = convert(save(weights, meta=meta, message_hub=3), tmp_path / "ours.pth", target="classifier")
    assert report.network.config == BACKBONE


def test_what_the_weights_tell_is_not_taken_from_the_recorded_config(weights, save, tmp_path):
    recorded = Config(dict(model=dict(backbone=BACKBONE | dict(depth=34, base_channels=10**9)))).pretty_text
    report = convert(save(weights, meta=dict(cfg=recorded)), tmp_path / "ours.pth")
    assert report.network.config == BACKBONE and report.network.settings_known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(layout="torchvision"), "in the layout 'mmpretrain', not 'torchvision'"),
        (dict(layout="tf"), "the layout 'tf' is unknown; expected one of auto"),
        (dict(target="onnx"), "the target 'onnx' is unknown; expected one of backbone"),
        (dict(destination="ours.pt"), "expected a name that ends with .pth or .safetensors"),
        (dict(destination="epoch_1.pth"), "from which it would be made"),
        (dict(destination="linked.pth"), "from which it would be made"),
        (dict(destination="hard.pth"), "from which it would be made"),
        (dict(destination="no/../epoch_1.pth"), "from which it would be made"),
        (dict(destination="folder.pth"), "folder.pth: is a folder"),
        (dict(destination="taken.pth/x/ours.pth"), "expected a folder to write to, .*taken.pth is a file"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(weights, save, tmp_path, monkeypatch, arguments, message):
    source = save(weights)
    (tmp_path / "taken.pth").write_text("mine")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "linked.pth").symlink_to(source)
    os.link(source, tmp_path / "hard.pth")
    before = contents(tmp_path)
    if arguments != dict(layout="torchvision"):
        monkeypatch.setattr(torch, "load", None)
    destination = tmp_path / arguments.pop("destination", "ours.pth")
    with pytest.raises((CheckpointError, DestinationError), match=message):
        convert(source, destination, **arguments)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("fails", ["torch.save", "os.link", "pathlib.Path.write_bytes", "pathlib.Path.mkdir"])
def test_a_full_disk_leaves_nothing_behind(weights, save, tmp_path, monkeypatch, fails):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    source = save(weights)
    before = contents(tmp_path)
    monkeypatch.setattr(fails, fail)
    with pytest.raises(DestinationError, match=r"written \(No space left on device\); nothing was left there"):
        convert(source, tmp_path / "new" / "ours.pth")
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()


def test_the_tool_converts_and_says_an_error_in_one_line(weights, save, tmp_path, monkeypatch, capsys):
    tool = ROOT / "tools/convert_checkpoint.py"
    arguments = [save(weights), tmp_path / "ours.pth", "--from", "mmpretrain"]
    monkeypatch.setattr(sys, "argv", [tool.name, *map(str, arguments)])
    for status in (0, 2):
        (tmp_path / "ours.py").write_text("mine") if status else None
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(tool), run_name="__main__")
        assert ended.value.code == status
        said = capsys.readouterr()
        if status == 0:
            assert said.out.endswith(f"wrote {tmp_path / 'ours.pth'}\nwrote {tmp_path / 'ours.py'}\n")
    assert said.out == ""
    assert said.err == f"error: {tmp_path / 'ours.py'} exists already; remove it, or name another destination\n"


class Noise(BaseDataset):
    """Two random pictures with labels."""

    def load_data_list(self):
        return [dict(gt_label=label) for label in (0, 1)]

    def prepare_data(self, index):
        from mmpretrain.structures import DataSample

        return dict(inputs=torch.randint(0, 255, (3, 32, 32)), data_samples=DataSample().set_gt_label(index))


def test_from_a_training_step_of_a_classifier_to_the_backbone_of_mask_rcnn(tmp_path):
    """The whole chain: mmpretrain trains and saves, convert takes the backbone out, mmdet loads it by init_cfg."""
    runner = Runner(
        model=CLASSIFIER,
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=2, dataset=Noise(), sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_scope="mmpretrain",
        experiment_name="chain",
        cfg=Config(dict(model=CLASSIFIER)),  # recorded in the checkpoint
    )  # fmt: skip
    started = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    trained = runner.model.state_dict()
    assert not torch.equal(trained[WHITENING], started[WHITENING]) and not torch.equal(trained[CONV], started[CONV])

    report = convert(tmp_path / "epoch_1.pth", tmp_path / "backbone.pth")
    assert report.network.settings_known and report.initialised == []

    config = Config.fromfile(ROOT / "configs/shapes/mask-rcnn_ce-r18_fpn_shapes.py")
    config.model.backbone.update(
        Config.fromfile(tmp_path / "backbone.py").model.backbone,
        init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "backbone.pth"), prefix=None),
    )
    config.model.neck.in_channels = [8, 16, 32, 64]
    with DefaultScope.overwrite_default_scope("mmdet"):
        detector = MODELS.build(config.model)
    detector.init_weights()
    assert same(detector.backbone.state_dict(), backbone_of(trained))
