"""A small run that has all that it needs, of which a test takes something away."""
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

COCO = {
    "images": [{"id": 1, "file_name": "1.png", "width": 8, "height": 8}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "person"}],
}
MODEL = dict(type="ImageClassifier", backbone=dict(type="LeNet5", num_classes=2), head=dict(type="ClsHead"))


def state_dict(model: dict = MODEL) -> dict[str, Tensor]:
    """The weights of a model of mmpretrain, as it is built."""
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(model).state_dict()


def coco_set(**changes: object) -> dict:
    """A data set of the folder of a complete run."""
    return {
        "type": "mmdet.CocoDataset", "data_root": "data/", "ann_file": "objects.json",
        "data_prefix": {"img": "pictures/"}, "pipeline": [dict(type="LoadImageFromFile")], **changes,
    }


def config(**changes: object) -> Config:
    """The config of a training and of a test of fits.pth, as a runner would get it."""
    loader = dict(dataset=coco_set(), num_workers=0)
    evaluator = dict(type="mmdet.CocoMetric", ann_file="data/objects.json")
    return Config(
        dict(
            default_scope="mmpretrain", model=MODEL, train_cfg={}, val_cfg={}, test_cfg={}, train_dataloader=loader,
            val_dataloader=loader, test_dataloader=loader, val_evaluator=evaluator, test_evaluator=[evaluator],
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)), work_dir="out",
        )
        | changes
    )
