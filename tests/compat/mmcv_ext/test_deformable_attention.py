"""The attention behind mmcv's interface equals its formula for CPUs, and its gradients are those of its values."""
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

SHAPES = torch.tensor([[4, 3], [2, 1]])
STARTS = torch.tensor([0, 12])


def inputs() -> list[torch.Tensor]:
    """Value, sampling locations (some outside of the maps) and attention weights: 2 pictures, 3 heads, 5 queries."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 14, 3, 4), (2, 5, 3, 2, 2, 2), (2, 5, 3, 2, 2)]
    value, places, weights = (torch.rand(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return [tensor.requires_grad_() for tensor in (value - 0.5, 1.2 * places - 0.1, weights)]


def on_gpu(value, places, weights):
    """What mmcv's layer calls for tensors on a GPU."""
    return MultiScaleDeformableAttnFunction.apply(value, SHAPES, STARTS, places, weights, 64)


def test_the_attention_for_a_gpu_equals_the_one_for_a_cpu():
    value, places, weights = inputs()
    expected = multi_scale_deformable_attn_pytorch(value, SHAPES, places, weights)
    torch.testing.assert_close(on_gpu(value, places, weights), expected)


def test_the_gradients_are_those_of_the_values():
    assert torch.autograd.gradcheck(on_gpu, [tensor.detach().requires_grad_() for tensor in inputs()])


def test_half_precision_is_the_float32_result_rounded():
    half = [tensor.detach().half() for tensor in inputs()]
    assert torch.equal(on_gpu(*half), on_gpu(*[tensor.float() for tensor in half]).half())
