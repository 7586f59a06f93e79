"""A folded backbone, by itself and for those who export it."""
import pytest
import torch
from mmpretrain.models.backbones import ResNet
from moved_layers import batch, moved, relative_error

from ce_mm.backbones import CEResNet
from ce_mm.layers import CENorm, FoldedCE, fold

DYNAMIC = torch.export.Dim.DYNAMIC


@pytest.fixture(scope="module")
def backbone():
    """A narrow CE-ResNet-18 in eval mode that returns two of its maps."""
    torch.manual_seed(0)
    return moved(CEResNet(18, base_channels=16, stem_channels=16, out_indices=(1, 3), ce_cfg=dict(correction=1)))


def same_maps(ours, theirs):
    return all(relative_error(mine, other) < 1e-5 for mine, other in zip(ours, theirs, strict=True))


def test_a_folded_backbone_computes_what_the_backbone_does(backbone):
    folded, x = fold(backbone), batch(2, 3, 32, 40)
    assert isinstance(folded, ResNet)
    assert not any(isinstance(module, CENorm) for module in folded.modules())
    assert sum(isinstance(module, FoldedCE) for module in folded.modules()) == 7
    with torch.no_grad():
        assert same_maps(folded(x), backbone(x))


def test_export_sees_standard_operators_only_and_its_program_takes_other_sizes(backbone):
    sizes = {0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC}
    program = torch.export.export(fold(backbone), (batch(2, 3, 64, 72),), dynamic_shapes=(sizes,))
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    operators = {target for target in called if isinstance(target, torch._ops.OperatorBase)}
    assert {operator.namespace for operator in operators} == {"aten"}
    assert {target.__module__ for target in called - operators} <= {"_operator"}  # arithmetic of the sizes
    x = batch(3, 3, 48, 96)
    with torch.no_grad():
        assert same_maps(program.module()(x), backbone(x))


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("size", [(3, 3, 48, 36), (1, 3, 4, 4)], ids=str)
def test_a_traced_backbone_takes_other_sizes(backbone, size):
    traced, x = torch.jit.trace(fold(backbone), batch(2, 3, 32, 40)), batch(*size)
    with torch.no_grad():
        assert same_maps(traced(x), backbone(x))
