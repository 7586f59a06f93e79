"""mmcv's batch norm across processes, of one process, equals PyTorch's batch norm."""
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops.sync_bn import SyncBatchNormFunction


@pytest.mark.parametrize("stats_mode", ["default", "N"])
def test_outputs_averages_and_gradients_equal_batch_norms(stats_mode):
    results = []
    for is_mmcv in (True, False):
        torch.manual_seed(0)
        x = (3 * torch.randn(4, 5, 3, 2) + 2).requires_grad_()
        weight, bias = torch.rand(5, requires_grad=True), torch.randn(5, requires_grad=True)
        mean, var = torch.randn(5), torch.rand(5)
        if is_mmcv:
            output = SyncBatchNormFunction.apply(x, mean, var, weight, bias, 0.1, 1e-5, None, 1, stats_mode)
        else:
            output = F.batch_norm(x, mean, var, weight, bias, True, 0.1, 1e-5)
        output.backward(torch.randn(4, 5, 3, 2))
        results.append([output, mean, var, x.grad, weight.grad, bias.grad])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
