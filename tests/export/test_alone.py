"""A file is run where this package is not, and what goes wrong there is said."""
import pytest
import torch
from torch import nn

from ce_mm.export import alone
from ce_mm.export.alone import running_alone
from ce_mm.layers import SwitchableNorm, fold


class Tuple(nn.Module):
    """The formats take networks whose result is a tuple."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return (self.network(x),)


@pytest.fixture
def save(tmp_path):
    """Write a module as TorchScript, without a look at its operators; the path."""

    def write(module):
        with torch.no_grad():
            torch.jit.trace(Tuple(module).eval(), torch.zeros(2, 8, 5, 5)).save(tmp_path / "network.pt")
        return tmp_path / "network.pt"

    return write


def test_a_network_of_standard_operators_computes_what_it_does_here(save):
    norm = SwitchableNorm(8).eval()
    with running_alone("torchscript", save(fold(norm))) as network:
        for shape in [(1, 8, 4, 4), (3, 8, 2, 7)]:
            x = torch.rand(shape)
            torch.testing.assert_close(network(x), (norm(x),))


def test_a_network_that_needs_this_package_does_not_load(save):
    path = save(SwitchableNorm(8))
    said = r"as torchscript, .* not load .* without ce_mm and OpenMMLab: .*ce_mm::moments"
    with pytest.raises(ValueError, match=said), running_alone("torchscript", path):
        pass


def test_what_fails_there_fails_here_and_the_next_batch_is_computed(save):
    with running_alone("torchscript", save(nn.Conv2d(8, 2, 1))) as network:
        with pytest.raises(RuntimeError, match="TorchScript interpreter"):
            network(torch.zeros(1, 3, 4, 4))
        (y,) = network(torch.zeros(1, 8, 4, 4))
        assert y.shape == (1, 2, 4, 4)


def test_a_process_that_ends_by_itself_is_an_error(save, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(alone.sys, "executable", str(python))
    said = r"the process ended with status 3 \(no memory\)"
    with pytest.raises(ValueError, match=said), running_alone("torchscript", tmp_path / "network.pt"):
        pass
