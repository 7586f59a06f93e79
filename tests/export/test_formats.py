"""ONNX has the operators of CE on every base norm, for maps of any size."""
import pytest
import torch
from torch import nn

from ce_mm.export.formats import FORMATS
from ce_mm.export.runtimes import load_onnx
from ce_mm.layers import CENorm, fold
from ce_mm.ops import RELU


class Layer(nn.Module):
    """CE with the residual add and the ReLU, as the formats take networks: the result is a tuple."""

    def __init__(self, ce):
        super().__init__()
        self.ce = ce

    def forward(self, x):
        return (self.ce(x, residual=x, rectifier=RELU),)


@pytest.mark.parametrize(
    "norm", [dict(type="GN", num_groups=4), dict(type="LN"), dict(type="IN"), dict(type="SN")], ids=str
)
def test_ce_on_a_norm_of_samples_is_the_same_in_onnxruntime(norm, tmp_path):
    generator = torch.Generator().manual_seed(0)
    ce, path = CENorm(32, norm=norm, correction=1), tmp_path / "layer.onnx"
    with torch.no_grad():
        for _ in range(3):
            ce(torch.randn(4, 32, 9, 9, generator=generator) * torch.rand(32, 1, 1, generator=generator))
        ce.eval()
        FORMATS["onnx"].write(Layer(fold(ce)).eval(), torch.zeros(2, 32, 8, 6), ["y"], {}, path)
        network = load_onnx(str(path))
        for shape in [(1, 32, 5, 7), (3, 32, 1, 1)]:
            x = torch.randn(shape, generator=generator)
            torch.testing.assert_close(network(x)[0], ce(x, residual=x, rectifier=RELU))
