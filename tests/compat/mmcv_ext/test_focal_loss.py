"""The focal losses behind mmcv's interface equal their formulas, and on any device what mmdet computes on a CPU."""
import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.losses import focal_loss as mmdet_focal_loss

GAMMAS = [0.0, 0.5, 2.0]
TARGET = torch.tensor([0, 2, 1, 3, 0, 2])  # of three classes: 3 is the background of mmdet's heads
OF_A_CLASS = torch.tensor([0, 2, 1, 1, 0, 2])
WEIGHT = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def logits(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


def plain_sigmoid_loss(x: torch.Tensor, target: torch.Tensor, gamma: float, alpha: float) -> torch.Tensor:
    p = torch.sigmoid(x)
    of_class = F.one_hot(target, 4)[:, :3].to(x.dtype)
    return -(of_class * alpha * (1 - p) ** gamma * p.log() + (1 - of_class) * (1 - alpha) * p**gamma * (1 - p).log())


def plain_softmax_loss(x: torch.Tensor, target: torch.Tensor, gamma: float, alpha: float) -> torch.Tensor:
    p = x.softmax(1)[torch.arange(len(x)), target]
    return -alpha * (1 - p) ** gamma * p.log()


@pytest.mark.parametrize("alpha", [0.25, 0.75])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("operator, plain, target", [
    (mmcv.ops.sigmoid_focal_loss, plain_sigmoid_loss, TARGET),
    (mmcv.ops.softmax_focal_loss, plain_softmax_loss, OF_A_CLASS),
])
def test_a_focal_loss_and_its_gradient_equal_the_formula(operator, plain, target, gamma, alpha):
    x, same = logits(), logits()
    expected = plain(same, target, gamma, alpha)
    torch.testing.assert_close(operator(x, target, gamma, alpha, None, "none"), expected)
    operator(x, target, gamma, alpha, None, "sum").backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, same.grad)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_gradient_of_the_sigmoid_loss_is_that_of_its_values(reduction, weight):
    assert torch.autograd.gradcheck(
        lambda x: mmcv.ops.sigmoid_focal_loss(x, OF_A_CLASS, 2.0, 0.25, weight, reduction), logits())


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("reduction", ["mean", "sum"])  # mmcv's own backward fails for "none"
def test_the_gradient_of_the_softmax_loss_is_that_of_its_values(reduction, weight):
    assert torch.autograd.gradcheck(
        lambda x: mmcv.ops.softmax_focal_loss(x, OF_A_CLASS, 2.0, 0.25, weight, reduction), logits())


def test_a_weight_multiplies_the_losses_of_its_class():
    for operator in (mmcv.ops.sigmoid_focal_loss, mmcv.ops.softmax_focal_loss):
        losses = operator(logits(), OF_A_CLASS, 2.0, 0.25, None, "none")
        weighted = operator(logits(), OF_A_CLASS, 2.0, 0.25, WEIGHT, "none")
        torch.testing.assert_close(weighted, losses * WEIGHT[OF_A_CLASS].reshape(-1, *[1] * (losses.dim() - 1)))


@pytest.mark.parametrize("device", [
    "cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))])
def test_mmdets_loss_for_a_gpu_equals_mmdets_loss_for_a_cpu(device):
    x, same = logits(torch.float32), logits(torch.float32)
    samples = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0])
    on_gpu = mmdet_focal_loss.sigmoid_focal_loss(*(t.to(device) for t in (x, TARGET, samples)), avg_factor=3.0).cpu()
    on_cpu = mmdet_focal_loss.FocalLoss()(same, TARGET, samples, avg_factor=3.0)
    torch.testing.assert_close(on_gpu, on_cpu)
    on_gpu.backward()
    on_cpu.backward()
    torch.testing.assert_close(x.grad, same.grad)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("operator", [mmcv.ops.sigmoid_focal_loss, mmcv.ops.softmax_focal_loss])
def test_losses_and_gradients_of_logits_without_doubt_are_finite(operator, gamma):
    x = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = operator(x, torch.tensor([0, 0]), gamma, 0.25, None, "sum")
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_sigmoid_loss_of_half_precision_is_that_of_float32_rounded(dtype):
    half = logits(dtype)
    full = half.detach().float().requires_grad_()
    losses = mmcv.ops.sigmoid_focal_loss(half, TARGET, 2.0, 0.25, None, "none")
    expected = mmcv.ops.sigmoid_focal_loss(full, TARGET, 2.0, 0.25, None, "none")
    assert torch.equal(losses, expected.to(dtype))
    losses.sum().backward()
    expected.sum().backward()
    assert torch.equal(half.grad, full.grad.to(dtype))


def test_a_sample_of_a_negative_class_counts_nothing_in_the_softmax_loss():
    x = logits()
    losses = mmcv.ops.softmax_focal_loss(x, torch.tensor([-1, 2, 1, 1, 0, -1]), 2.0, 0.25, WEIGHT, "none")
    assert losses[0] == losses[-1] == 0
    x = logits()
    mmcv.ops.softmax_focal_loss(x, torch.tensor([-1, 2, 1, 1, 0, -1]), 2.0, 0.25, WEIGHT, "sum").backward()
    assert torch.equal(x.grad[[0, -1]], torch.zeros(2, 3, dtype=x.dtype))
    assert x.grad[1].any()


def test_no_samples_have_no_losses():
    x = torch.zeros(0, 3, requires_grad=True)
    losses = mmcv.ops.sigmoid_focal_loss(x, torch.zeros(0, dtype=torch.int64), 2.0, 0.25, None, "none")
    losses.sum().backward()
    assert losses.shape == x.grad.shape == (0, 3)
