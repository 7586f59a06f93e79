"""Launch every Triton kernel, in all configurations in turn, on small maps: python -m tools.evidence.gpu.kernels.

For a tool that looks on, as compute-sanitizer: no tuner tries kernels, and nothing is compared.
"""
import itertools

import torch

from ce_mm import ops
from ce_mm.layers import CENorm
from ce_mm.ops.backends import triton_passes

TUNED = [triton_passes._sums_kernel, triton_passes._affine_kernel, triton_passes._input_gradient_kernel]
LAYERS = (
    {}, dict(group_size=32), dict(group_size=64), dict(norm=dict(type="GN", num_groups=8)), dict(branches=("ir",)),
)  # fmt: skip
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def launch(layer: CENorm, dtype: torch.dtype, layout: torch.memory_format, device: str) -> None:
    """A training step and inference, on a map whose rows are odd."""
    x = torch.randn(3, 192, 5, 9, device=device).to(dtype).contiguous(memory_format=layout).requires_grad_()
    layer.train()(x, x, ops.RELU6).backward(torch.ones_like(x))
    with torch.no_grad():
        layer.eval()(x, rectifier=ops.RELU)


def main() -> None:
    """Every kind of layer, type and layout once, with another configuration of the tuned kernels each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    possible = {tuner: tuner.configs for kernel in TUNED for tuner in kernel.tuners.values()}
    kinds = list(itertools.product(LAYERS, DTYPES, LAYOUTS))
    for number, (arguments, dtype, layout) in enumerate(kinds):
        for tuner, configurations in possible.items():
            tuner.configs = [configurations[number % len(configurations)]]
        launch(CENorm(192, **arguments).to(device), dtype, layout, device)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"launched on {device}: {len(kinds)} kinds of layer")


if __name__ == "__main__":
    main()
