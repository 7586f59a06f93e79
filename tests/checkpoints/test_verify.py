"""verify names each tensor that cannot be what it should be, with the value found and what was expected."""
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from safetensors.torch import save_file

from ce_mm.backbones import CEResNet
from ce_mm.checkpoints.publishing import sha256
from ce_mm.checkpoints.reading import CheckpointError
from ce_mm.checkpoints.verify import Finding, verify

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = dict(type="CEResNet", depth=18, stem_channels=32, base_channels=32)  # of the configs in configs/shapes
CLASSIFIER = ROOT / "configs/shapes/ce-resnet18_shapes.py"
DETECTOR = ROOT / "configs/shapes/mask-rcnn_ce-r18_fpn_shapes.py"


@pytest.fixture(scope="module")
def backbone() -> CEResNet:
    return CEResNet(18, stem_channels=32, base_channels=32)


@pytest.fixture
def weights(backbone) -> dict:
    """A copy, to be spoilt."""
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def build(path: Path) -> torch.nn.Module:
    config = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value, shown", [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_a_value_that_is_not_finite_is_named_with_its_place(weights, value, shown):
    weights["conv1.weight"][0, 1, 2, 3] = value
    assert verify(weights) == [Finding("conv1.weight", f"holds {shown} at [0, 1, 2, 3]; expected finite numbers")]


def test_more_than_one_are_counted(weights):
    weights["conv1.weight"][1] = float("nan")
    (finding,) = verify(weights)
    assert str(finding) == "conv1.weight: holds nan at [1, 0, 0, 0] and 146 more such values; expected finite numbers"


@pytest.mark.parametrize("name, value, expected", [
    ("bn1.norm.running_var", 0.0, "a variance above 0"), ("bn1.norm.running_var", -0.5, "a variance above 0"),
    ("layer1.0.bn2.ir.running_inv_std_scale", 0.0, "above 0"), ("bn1.ir.running_inv_std_scale", -1.0, "above 0"),
    ("layer4.0.bn1.num_batches_tracked", -1, "a count, 0 or more"),
    ("bn1.bd.running_whitening", 0.0, "above 0 on the diagonal"),
])  # fmt: skip
def test_an_implausible_buffer_is_named(weights, name, value, expected):
    weights[name].fill_(value)
    (finding,) = verify(weights)
    assert finding.name == name
    assert finding.problem.startswith(f"holds {value:g}") and expected in finding.problem


def test_a_whitening_is_symmetric_to_rounding(weights):
    whitening = weights["bn1.bd.running_whitening"]
    whitening[1, 2, 3] = 1e-6
    assert verify(weights) == []
    whitening[1, 2, 3] = 0.5
    (finding,) = verify(weights)
    assert finding.problem.startswith("holds 0.5 at [1, 2, 3] and 1 more such value; expected symmetric matrices")


def test_a_whitening_is_made_of_square_matrices(weights):
    weights["bn1.bd.running_whitening"] = torch.ones(2, 16)
    assert "is of shape (2, 16)" in verify(weights)[0].problem


def test_the_buffers_of_a_trained_network_are_plausible(weights):
    model = CEResNet(18, stem_channels=32, base_channels=32)
    model.load_state_dict(weights)
    for step in range(2):
        model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(step)))
    assert verify(model.state_dict(), Config(dict(model=BACKBONE))) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64])
def test_every_type_of_numbers_is_looked_at(dtype):
    values = torch.tensor([1.0, float("nan")]).to(dtype)
    assert len(verify({"weight": values})) == 1 and verify({"weight": values[:1]}) == []


def test_a_type_that_pytorch_cannot_compute_with_is_named():
    (finding,) = verify({"weight": torch.zeros(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)})
    assert "float4_e2m1fn_x2" in finding.problem


@pytest.mark.parametrize(
    "checkpoint", [{}, {"state_dict": {}}, {"w": 1}, {"x": torch.ones(1), "module.x": torch.ones(1)}]
)
def test_what_holds_no_weights_is_an_error(checkpoint):
    with pytest.raises(CheckpointError, match=r"expected (weights|a tensor)|is there twice"):
        verify(checkpoint)


# --- against a model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [
    Config(dict(model=BACKBONE)), Config(dict(model=dict(backbone=BACKBONE))), CLASSIFIER, DETECTOR,
], ids=["a backbone", "a backbone in a model", "a classifier", "a detector"])  # fmt: skip
def test_a_backbone_fits_every_config_that_has_it(weights, config):
    config = config if isinstance(config, Config) else Config.fromfile(config)
    assert verify(dict(state_dict=weights), config) == []
    del weights["layer1.0.bn2.mix"]
    assert verify(weights, config) == [Finding("layer1.0.bn2.mix", "is missing; the model has it")]


@pytest.mark.parametrize("path", [CLASSIFIER, DETECTOR], ids=["classifier", "detector"])
def test_a_whole_model_fits_its_config(path):
    state = build(path).state_dict()
    state = {f"module.{name}": value for name, value in state.items()}
    assert verify(dict(state_dict=state, optimizer={}), Config.fromfile(path)) == []
    lost = next(name for name in state if not name.startswith("module.backbone."))
    assert verify(state | {"module.other": state.pop(lost)}, Config.fromfile(path)) == [
        Finding(lost.removeprefix("module."), "is missing; the model has it"),
        Finding("other", "is unexpected; the model has no such name"),
    ]


def test_another_shape_and_another_type_are_named(weights):
    weights["conv1.weight"] = weights["conv1.weight"][:3]
    weights["layer1.0.conv1.weight"] = weights["layer1.0.conv1.weight"].half()
    weights["layer1.0.conv2.weight"] = weights["layer1.0.conv2.weight"].int()
    assert verify(weights, Config(dict(model=BACKBONE))) == [
        Finding("conv1.weight", "is of shape (3, 3, 7, 7); expected (32, 3, 7, 7)"),
        Finding("layer1.0.conv1.weight", "is of type torch.float16; expected torch.float32"),
        Finding("layer1.0.conv2.weight", "is of type torch.int32; expected torch.float32"),
    ]


def test_names_of_a_plain_network_are_taken_as_the_model_takes_them(weights):
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        weights[f"bn1.{part}"] = weights.pop(f"bn1.norm.{part}")
    assert verify(weights, Config(dict(model=BACKBONE))) == []
    weights["bn1.weight"] = weights["bn1.weight"][:3].double()
    (finding,) = verify(weights, Config(dict(model=BACKBONE)))
    assert "size mismatch for bn1.norm.weight" in str(finding) and "\n" not in str(finding)


@pytest.mark.parametrize("model, message", [
    (None, "with a model"), (dict(type="NoSuchNet"), "NoSuchNet"), (dict(type="CEResNet", depth=7), "7"),
])  # fmt: skip
def test_a_config_without_a_model_that_can_be_built_is_an_error(weights, model, message):
    with pytest.raises(ValueError, match=message):
        verify(weights, Config(dict(model=model)))


# --- the tool ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tool(monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["verify_checkpoint.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "tools/verify_checkpoint.py"), run_name="__main__")
        out, error = capsys.readouterr()
        return ended.value.code, out.splitlines(), error

    return run


def test_the_tool_ends_with_0_where_all_is_well(tool, weights, tmp_path):
    torch.save(dict(state_dict=weights), tmp_path / "good.pth")
    assert tool(tmp_path / "good.pth", DETECTOR) == (
        0, [f"{tmp_path / 'good.pth'} against {DETECTOR}: {len(weights)} weights, no findings"], ""
    )  # fmt: skip


def test_the_tool_ends_with_1_and_prints_a_line_for_each_finding(tool, weights, tmp_path):
    weights["conv1.weight"][0, 0, 0, 0] = float("nan")
    weights["bn1.norm.running_var"][3] = -1
    save_file(weights, tmp_path / "bad.safetensors")
    code, lines, error = tool(tmp_path / "bad.safetensors")
    assert code == 1 and error == ""
    assert lines == [
        "bn1.norm.running_var: holds -1 at [3]; expected a variance above 0",
        "conv1.weight: holds nan at [0, 0, 0, 0]; expected finite numbers",
        f"{tmp_path / 'bad.safetensors'}: {len(weights)} weights, 2 findings",
    ]


def test_the_tool_ends_with_2_and_one_line_where_something_cannot_be_read(tool, weights, tmp_path):
    torch.save(weights, tmp_path / "good.pth")
    for arguments in ([tmp_path / "absent.pth"], [tmp_path, DETECTOR], [tmp_path / "good.pth", tmp_path / "absent.py"]):
        code, lines, error = tool(*arguments)
        assert code == 2 and lines == []
        assert error.startswith("error: ") and error.count("\n") == 1 and str(tmp_path) in error


def flipped(path: Path, value: torch.Tensor) -> Path:
    """Flip a bit of the last number of a tensor in a file."""
    content, numbers = bytearray(path.read_bytes()), value.numpy().tobytes()
    content[content.index(numbers) + len(numbers) - 2] ^= 1
    path.write_bytes(content)
    return path


def test_a_weight_with_a_flipped_bit_is_told_by_the_checksum_beside_it(tool, weights, tmp_path):
    torch.save(dict(state_dict=weights), tmp_path / "bad.pth")
    code, lines, error = tool(flipped(tmp_path / "bad.pth", weights["conv1.weight"]))
    assert code == 2 and lines == [] and "Bad CRC-32" in error and "copy or download it again" in error


def test_where_there_is_none_it_is_told_by_the_digits_in_the_name(tool, weights, tmp_path):
    save_file(weights, tmp_path / "x")
    digits = sha256((tmp_path / "x").read_bytes())[:8]
    path = (tmp_path / "x").rename(tmp_path / f"x-{digits}.safetensors")
    assert tool(path)[0] == 0
    code, lines, _ = tool(flipped(path, weights["conv1.weight"]))
    assert code == 1 and lines[0].startswith("the file: its SHA-256 does not begin as its name says")
