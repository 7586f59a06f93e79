"""CARAFE behind mmcv's interface equals the plain weighted sum, and its gradients are those of its values."""
import mmcv.ops
import numpy as np
import pytest
import torch
from mmcv.ops import carafe, carafe_naive

KERNEL_SIZE, GROUPS, SCALE = 3, 2, 2


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 3, 2), (2, GROUPS * KERNEL_SIZE**2, 3 * SCALE, 2 * SCALE)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


def plain(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One new pixel after the other."""
    features, masks = features.detach().numpy(), masks.detach().unflatten(1, (GROUPS, KERNEL_SIZE, KERNEL_SIZE)).numpy()
    padded = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)))
    output = np.zeros((*features.shape[:2], *masks.shape[-2:]))
    for n, c, i, j in np.ndindex(output.shape):
        neighbours = padded[n, c, i // SCALE:i // SCALE + KERNEL_SIZE, j // SCALE:j // SCALE + KERNEL_SIZE]
        output[n, c, i, j] = (neighbours * masks[n, c // (features.shape[1] // GROUPS), :, :, i, j]).sum()
    return torch.from_numpy(output)


@pytest.mark.parametrize("operator", [carafe, carafe_naive])
def test_carafe_equals_the_plain_weighted_sum(operator):
    torch.testing.assert_close(operator(*inputs(), KERNEL_SIZE, GROUPS, SCALE).detach(), plain(*inputs()))


def test_the_gradients_of_carafe_are_those_of_its_values():
    """mmcv's naive form takes its backward pass on a GPU only."""
    assert torch.autograd.gradcheck(lambda *tensors: carafe(*tensors, KERNEL_SIZE, GROUPS, SCALE), inputs())


def test_mmcvs_upsampling_layer_keeps_a_constant_map():
    """The weights of its pixels sum to 1, and inside of the border all neighbours are there."""
    output = mmcv.ops.CARAFEPack(4, 2)(torch.ones(1, 4, 9, 9))
    assert output.shape == (1, 4, 18, 18)
    torch.testing.assert_close(output[:, :, 4:14, 4:14], torch.ones(1, 4, 10, 10))
