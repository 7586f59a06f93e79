"""model-index.yml, by which mim lists the models, names every config of the paper's systems, and no figure as ours."""
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from modelindex.load_model_index import load

ROOT = Path(__file__).resolve().parents[1]
METAFILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/*/metafile.yml"))
NOT_OF_THE_PAPER = {"configs/shapes", "configs/coco/mask-rcnn_ce-r18_fpn_8pictures_coco.py"}


@pytest.fixture(scope="module")
def index():
    """As mim reads it."""
    return load(str(ROOT / "model-index.yml"))


def test_it_lists_every_metafile():
    assert sorted(yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]) == METAFILES


def test_it_lists_every_config_of_the_paper_s_systems_once(index):
    configs = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/*/*.py")}
    expected = {c for c in configs if not {c, Path(c).parent.as_posix()} & (NOT_OF_THE_PAPER | {"configs/_base_"})}

    assert sorted(model.config for model in index.models) == sorted(expected)


def test_a_model_has_its_config_s_name_and_a_collection(index):
    collections = {collection.name for collection in index.collections}
    for model in index.models:
        assert model.name == Path(model.config).stem
        assert model.name == model.name.lower()  # mim looks for names in small letters
        assert model.in_collection in collections


def test_epochs_and_batch_size_are_the_config_s(index):
    stated = {c.name: (c.metadata.data["Epochs"], c.metadata.data["Batch Size"]) for c in index.collections}
    for model in index.models:
        cfg = Config.fromfile(ROOT / model.config)
        assert stated[model.in_collection] == (cfg.train_cfg.max_epochs, cfg.auto_scale_lr.base_batch_size), model.name


def test_every_figure_is_marked_as_the_paper_s_or_the_authors_and_no_weights_are_promised(index):
    metrics = [name for model in index.models for result in model.results or [] for name in result.metrics]

    assert metrics and all(name.endswith(("(reported by the paper)", "(reported by the authors)")) for name in metrics)
    assert not any(model.weights for model in index.models)


# Top-1 and top-5 accuracy without CE and with it, in %.
TABLE_7 = {
    "resnet50-gn": (75.6, 92.8, 76.2, 92.9),
    "resnet50-in": (74.2, 91.9, 76.0, 92.7),
    "resnet50-ln": (71.6, 89.9, 73.3, 91.3),
    "resnet18": (70.5, 89.4, 71.9, 90.2),
    "resnet18-elu": (68.1, 87.6, 68.7, 88.5),
}


def test_all_of_the_paper_s_table_7_is_in_it(index):
    stated = {model.name.removesuffix("_8xb32_in1k"): model.results for model in index.models}

    def of_the_paper(name):
        ((result,),) = (stated[name],)
        return tuple(result.metrics[f"Top {k} Accuracy (reported by the paper)"] for k in (1, 5))

    assert {name: of_the_paper(name) + of_the_paper(f"ce-{name}") for name in TABLE_7} == TABLE_7
