"""A few generated shapes, and checkpoints of the demo's two networks with fresh weights."""
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ce_mm.datasets.shapes import make_shapes

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = dict(
    classifier=str(ROOT / "configs/shapes/ce-resnet18_shapes.py"),
    detector=str(ROOT / "configs/shapes/mask-rcnn_ce-r18_fpn_shapes.py"),
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder as the demo leaves it; ``.classifier`` and ``.detector`` are (config, checkpoint), two strings each."""
    folder = tmp_path_factory.mktemp("demo")
    make_shapes(folder / "data/shapes", num_train=1, num_val=3, num_crops=60)
    found = SimpleNamespace(folder=folder)
    for kind, config in CONFIGS.items():
        torch.manual_seed(0)
        cfg = Config.fromfile(config)
        settings = cfg.model.copy()
        settings.backbone.init_cfg = None
        if "data_preprocessor" in cfg:
            settings.data_preprocessor = cfg.data_preprocessor
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(settings)
        path = folder / kind / "epoch_3.pth"
        path.parent.mkdir()
        torch.save(dict(state_dict=model.state_dict()), path)
        setattr(found, kind, (config, str(path)))
    return found


@pytest.fixture
def there(demo, monkeypatch):
    """The demo, with its folder as the working folder."""
    monkeypatch.chdir(demo.folder)
    return demo


@pytest.fixture
def tool(monkeypatch):
    """Run a tool of tools/analysis by its name; its exit status."""

    def run(name, *arguments):
        path = ROOT / "tools/analysis" / f"{name}.py"
        monkeypatch.setattr("sys.argv", [str(path), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        return end.value.code

    return run
