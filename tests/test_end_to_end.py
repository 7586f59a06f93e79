"""The main job on real pictures, small: mmdet's own train.py saves and resumes, our tools test and evaluate."""
import json
import subprocess
import sys
from pathlib import Path

import mmdet

from ce_mm.checkpoints.reading import read_checkpoint
from ce_mm.datasets.subset import write_subset

ROOT = Path(__file__).resolve().parents[1]
MMDET_TRAIN = Path(mmdet.__file__).parent / ".mim/tools/train.py"
CONFIG = ROOT / "configs/coco/mask-rcnn_ce-r50_fpn_2x_coco.py"
TINY = "(128,96)"


def run(tool, *arguments, cwd):
    result = subprocess.run(
        [sys.executable, str(tool), *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


def test_mask_rcnn_trains_saves_resumes_and_is_evaluated_on_real_pictures(shared, tmp_path):
    coco = shared / "data/coco_mini"
    annotations = tmp_path / "annotations.json"
    write_subset(coco / "annotations/instances_train2017.json", annotations, 3)
    prefix = f"dataset.data_prefix.img={coco / 'train2017'}"
    train_options = [
        "model.backbone.init_cfg=None", "train_dataloader.dataset.data_root=", "train_dataloader.batch_size=1",
        f"train_dataloader.dataset.ann_file={annotations}", f"train_dataloader.{prefix}",
        f"train_dataloader.dataset.pipeline.2.scale={TINY}", "train_dataloader.num_workers=0",
        "train_dataloader.persistent_workers=False", "val_cfg=None", "val_dataloader=None", "val_evaluator=None",
        "default_hooks.logger.interval=1",
    ]  # fmt: skip

    def train(epochs, *arguments):
        options = ["--work-dir", "run", *arguments, "--cfg-options", *train_options, f"train_cfg.max_epochs={epochs}"]
        return run(MMDET_TRAIN, CONFIG, *options, cwd=tmp_path)

    train(1)
    checkpoint = read_checkpoint(tmp_path / "run/epoch_1.pth")["state_dict"]
    assert any(name.startswith("backbone.layer1.0.bn3.bd.") for name in checkpoint)
    log = train(2, "--resume")
    assert "resumed epoch: 1, iter: 3" in log
    assert "Epoch(train) [2][3/3]" in log
    assert "Epoch(train) [1]" not in log

    test_options = [
        "test_dataloader.dataset.data_root=", f"test_dataloader.dataset.ann_file={annotations}",
        f"test_dataloader.{prefix}", f"test_dataloader.dataset.pipeline.1.scale={TINY}",
        f"test_evaluator.ann_file={annotations}",
    ]  # fmt: skip
    arguments = [CONFIG, "run/epoch_2.pth", "--work-dir", "test", "--out", "results.pkl"]
    run(ROOT / "tools/test.py", *arguments, "--cfg-options", *test_options, cwd=tmp_path)
    run(ROOT / "tools/eval_coco.py", annotations, "results.pkl", "--out", "metrics.json", cwd=tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= set(metrics)
