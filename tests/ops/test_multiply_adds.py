import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ce_mm import ops

N, C, G, P = 2, 8, 4, 15
X, SHIFT = torch.randn(N, C, 3, 5), torch.zeros(C)
BIAS, DIAGONAL, MATRIX = torch.zeros(1, C), torch.ones(N, C), torch.randn(1, C // G, G, G)


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return {str(name): flops // 2 for name, flops in counter.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("products, each", [(True, 2 + G), (False, 3)])
def test_moments_are_counted_by_pytorch_s_counter(products, each):
    assert counted(lambda: ops.moments(X, G, products=products)) == {"ce_mm.moments": N * C * P * each}


@pytest.mark.parametrize("matrix, each", [(MATRIX, 1 + G), (None, 2)])
def test_the_affine_map_is_counted_by_pytorch_s_counter(matrix, each):
    expected = {"ce_mm.group_affine": N * C * P * each}
    assert counted(lambda: ops.group_affine(X, SHIFT, matrix, DIAGONAL, BIAS)) == expected


def test_the_backward_is_counted_as_its_two_passes():
    x = X.clone().requires_grad_()

    def step():
        moments = ops.moments(x, G)
        matrix = MATRIX * moments.second
        ops.group_affine(x, moments.shift, matrix, DIAGONAL, BIAS, link=moments.link).sum().backward()

    counts = counted(step)
    assert counts["ce_mm.output_sums"] == N * C * P * (2 + G)
    assert counts["ce_mm.input_gradient"] == N * C * P * (G + 1 + G)


def test_every_operator_has_its_count():
    assert {f"ce_mm::{name}" for name in ops.MULTIPLY_ADDS} == {
        schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("ce_mm::")
    }
