"""The networks of the paper at full size in onnxruntime: 20 random inputs of three sizes and three batch sizes."""
import itertools

import onnxruntime
import pytest
import torch

from ce_mm.export import export, exporting
from ce_mm.export.check import random_pictures

INPUTS, SIZES, BATCHES, TOLERANCE = 20, ((64, 64), (80, 101), (128, 96)), (1, 2, 4), 1e-4


@pytest.mark.parametrize("name", ["ce-resnet50_8xb32", "ce-mobilenet-v2_8xb32", "ce-shufflenet-v2-1x_8xb128"])
def test_onnx_of_the_networks_of_the_paper_is_within_a_ten_thousandth(make_classifier, tmp_path, monkeypatch, name):
    # The check that comes with an export is not what is tested here; one of its own inputs is enough.
    monkeypatch.setattr(exporting, "random_pictures", lambda channels: random_pictures(channels, count=1))
    subject, out = make_classifier(f"imagenet/{name}_in1k.py"), tmp_path / "network.onnx"
    export(subject.config, subject.checkpoint, "onnx", out)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    preprocessor, largest = subject.model.data_preprocessor, 0.0
    generator = torch.Generator().manual_seed(0)
    for batch, (height, width) in itertools.islice(itertools.cycle(itertools.product(BATCHES, SIZES)), INPUTS):
        light = 255 * torch.rand(batch, 3, 1, 1, generator=generator)
        pictures = (light + 20 * torch.randn(batch, 3, height, width, generator=generator)).clamp(0, 255)
        (logits,) = session.run(["logits"], {"pictures": pictures.numpy()})
        with torch.no_grad():
            expected = subject.model((pictures - preprocessor.mean) / preprocessor.std, mode="tensor")
        largest = max(largest, ((torch.from_numpy(logits) - expected).abs().max() / expected.abs().max()).item())
    assert 0 < largest <= TOLERANCE
