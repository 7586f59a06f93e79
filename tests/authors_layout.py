"""Weights with the names and shapes of the CE authors' ResNet-50, and any numbers in them."""
import torch
from torch import Tensor


def authors_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' CE-ResNet-50 with ``width`` channels in the stem (64 in the released one)."""
    shapes = {}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def ce(name: str, channels: int, group: int) -> None:
        while channels % group:
            group //= 2
        shapes[f"{name}.x_weight"] = (1,)
        shapes[f"{name}.running_mean"] = (channels // group, group, 1)
        shapes[f"{name}.running_wm"] = (channels // group, group, group)
        shapes[f"{name}.AR.running_scale"] = (1,)
        shapes[f"{name}.AR.fc.0.weight"] = (channels // 4, channels)
        shapes[f"{name}.AR.fc.1.weight"] = shapes[f"{name}.AR.fc.1.bias"] = (channels // 4,)
        shapes[f"{name}.AR.fc.3.weight"] = (channels, channels // 4)

    shapes["conv1.weight"] = (width, 3, 7, 7)
    norm("bn1", width)
    ce("ce1", width, 64)
    into = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width * 2**stage
        for index in range(blocks):
            block = f"layer{stage + 1}.{index}"
            sizes = ((inner, into, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1))
            for conv, size in enumerate(sizes, 1):
                shapes[f"{block}.conv{conv}.weight"] = size
                norm(f"{block}.bn{conv}", size[0])
            if stage < 3:
                ce(f"{block}.ce", 4 * inner, 16)
            if index == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * inner, into, 1, 1)
                norm(f"{block}.downsample.1", 4 * inner)
            into = 4 * inner
    classes = 1000 if width == 64 else 10
    return shapes | {"fc.weight": (classes, into), "fc.bias": (classes,)}


def authors_weights(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random numbers for these names, of the kind that training gives."""
    generator = torch.Generator().manual_seed(0)

    def value(name: str, shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith("num_batches_tracked"):
            return torch.tensor(12345)
        if name.endswith("running_wm"):  # not symmetric, so that a transposed one is found
            return (torch.eye(shape[-1], dtype=noise.dtype) + 0.1 * noise).to(dtype)
        if name.endswith(("running_var", "running_scale")):
            return (0.5 + noise.abs()).to(dtype)
        if name.endswith((".weight", "x_weight")) and len(shape) == 1:
            return (1 + 0.2 * noise).to(dtype)
        return (noise * (2 / (noise[0].numel() or 1)) ** 0.5 if len(shape) > 1 else 0.2 * noise).to(dtype)

    return {name: value(name, tuple(shape)) for name, shape in shapes.items()}
