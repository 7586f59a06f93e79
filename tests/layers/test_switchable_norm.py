import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ce_mm.layers import SwitchableNorm
from ce_mm.ops.reference import switchable_norm


def layer(channels=6):
    torch.manual_seed(0)
    sn = SwitchableNorm(channels, eps=1e-3).double()
    for value in [*sn.parameters(), sn.running_mean]:
        nn.init.normal_(value)
    nn.init.uniform_(sn.running_var, 0.5, 2)
    return sn


def batch(n=3, channels=6, h=5, w=4):
    return torch.randn(n, channels, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_gradients_and_buffers_are_the_formula_s(training, layout):
    sn, x = layer().train(training), batch().contiguous(memory_format=layout).requires_grad_()
    twin = copy.deepcopy(sn)
    running = None if training else (twin.running_mean, twin.running_var)
    expected = switchable_norm(x, twin.mean_weight, twin.var_weight, twin.weight, twin.bias, 1e-3, running)
    y = sn(x)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(y)
    mine = torch.autograd.grad(y, [x, *sn.parameters()], dy)
    torch.testing.assert_close(mine, torch.autograd.grad(expected, [x, *twin.parameters()], dy))
    if training:
        F.batch_norm(x, twin.running_mean, twin.running_var, training=True)
        twin.num_batches_tracked += 1
    torch.testing.assert_close(dict(sn.named_buffers()), dict(twin.named_buffers()))


def test_with_all_weight_on_one_of_the_three_it_is_that_norm():
    x = batch()
    norms = [F.instance_norm(x), F.layer_norm(x, x.shape[1:]), F.batch_norm(x, None, None, training=True)]
    for k, expected in enumerate(norms):
        sn = SwitchableNorm(6).double()
        for logits in (sn.mean_weight, sn.var_weight):
            logits.data[k] = 1000
        torch.testing.assert_close(sn(x), expected)


def test_backward_keeps_no_map_but_the_input():
    sn, kept, x = SwitchableNorm(6), [], torch.randn(2, 6, 20, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        sn(x)
    assert {tensor.data_ptr() for tensor in kept if tensor.numel() >= x.numel() / 4} == {x.data_ptr()}


@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (2, 6, 0, 4), (1, 6, 1, 1), (4, 6, 1, 1)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_small_and_empty_batches_give_finite_numbers(shape, training):
    sn, x = SwitchableNorm(6).train(training), torch.randn(shape, requires_grad=True)
    sn(x).square().sum().backward()
    for value in [x.grad, *(p.grad for p in sn.parameters()), *sn.buffers()]:
        assert value.isfinite().all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_a_batch_that_is_not_finite_moves_no_buffer(poison):
    sn, x = SwitchableNorm(6), torch.randn(2, 6, 4, 4)
    x[1, 5, 2, 2] = poison
    before = copy.deepcopy(sn.state_dict())
    sn(x)
    torch.testing.assert_close(dict(sn.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32_and_returns_the_type_of_x(dtype):
    sn, x = SwitchableNorm(6), torch.randn(2, 6, 8, 8).to(dtype)
    expected = copy.deepcopy(sn)(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sn(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype))


def test_the_state_has_the_names_that_checkpoints_use():
    assert {name: tuple(value.shape) for name, value in SwitchableNorm(6).state_dict().items()} == {
        "weight": (6,),
        "bias": (6,),
        "mean_weight": (3,),
        "var_weight": (3,),
        "running_mean": (6,),
        "running_var": (6,),
        "num_batches_tracked": (),
    }


@pytest.mark.parametrize(
    "kwargs",
    [dict(num_features="6"), dict(num_features=0), dict(eps="1e-5"), dict(momentum="0.1"), dict(momentum=2)],
    ids=str,
)
def test_an_argument_of_the_wrong_kind_is_named(kwargs):
    with pytest.raises(ValueError, match=f"SwitchableNorm's {next(iter(kwargs))} must be .*, got"):
        SwitchableNorm(**dict(num_features=6) | kwargs)


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 5, 4, 4)], ids=str)
def test_an_input_of_another_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"takes a map of shape \(N, 6, H, W\), got \("):
        SwitchableNorm(6)(torch.zeros(shape))
