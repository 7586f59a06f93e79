"""What a file does to pictures is what the model's data_preprocessor does to a batch."""
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from mmpretrain.models import ClsDataPreprocessor

from ce_mm.export.pictures import Preparation, reads_rgb

NORMAL = dict(mean=[120.0, 110.0, 100.0], std=[50.0, 60.0, 70.0])
FILES = dict(pipeline=[dict(type="mmdet.LoadImageFromFile"), dict(type="PackInputs")])
TO_PIL, FROM_PIL = dict(type="mmpretrain.NumpyToPIL", to_rgb=True), dict(type="PILToNumpy", to_bgr=True)


@pytest.mark.parametrize("rgb", [True, False])
@pytest.mark.parametrize(
    "preprocessor",
    [
        ClsDataPreprocessor(**NORMAL),
        ClsDataPreprocessor(**NORMAL, to_rgb=True, pad_size_divisor=8, pad_value=3),
        ClsDataPreprocessor(to_rgb=True),
        DetDataPreprocessor(**NORMAL, bgr_to_rgb=True, pad_size_divisor=32),
        DetDataPreprocessor(**NORMAL, rgb_to_bgr=True),
        BaseDataPreprocessor(),
    ],
)
def test_it_prepares_as_the_preprocessor_of_the_model(preprocessor, rgb):
    pictures = torch.randint(0, 256, (2, 3, 13, 32)).float()
    as_loaded = pictures if rgb else pictures.flip(1)
    expected = preprocessor(dict(inputs=as_loaded))["inputs"]
    torch.testing.assert_close(Preparation(preprocessor, rgb)(pictures), expected, rtol=0, atol=0)


def test_grey_pictures_have_no_order():
    pictures = torch.rand(2, 1, 8, 8)
    assert torch.equal(Preparation(BaseDataPreprocessor(), reads_rgb=False)(pictures), pictures)


@pytest.mark.parametrize(
    ("config", "rgb"),
    [
        (dict(), False),
        (dict(test_dataloader=None), False),
        (dict(test_dataloader=dict(dataset=FILES)), False),
        (dict(test_dataloader=dict(dataset=dict(type="RepeatDataset", dataset=FILES))), False),
        (dict(test_dataloader=dict(dataset=dict(pipeline=[*FILES["pipeline"], TO_PIL]))), True),
        (dict(test_dataloader=dict(dataset=dict(pipeline=[*FILES["pipeline"], TO_PIL, FROM_PIL]))), False),
        (dict(test_dataloader=dict(dataset=dict(pipeline=[*FILES["pipeline"], dict(type="NumpyToPIL")]))), False),
        (dict(test_dataloader=dict(dataset=dict(type="CIFAR10", pipeline=[FROM_PIL]))), False),
        (dict(test_dataloader=dict(dataset=dict(type="CIFAR10", pipeline=[dict(type="PackInputs")]))), True),
    ],
)
def test_pictures_from_files_are_bgr_and_those_of_a_data_set_of_arrays_rgb(config, rgb):
    assert reads_rgb(Config(config)) is rgb
