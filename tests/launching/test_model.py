"""The model in front of a run: that it builds, and that the weights it starts from or is tested with are its own."""
import logging
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmpretrain.models import ClsHead, ImageClassifier, LeNet5
from mmpretrain.registry import MODELS
from small_run import MODEL, config, state_dict

from ce_mm.launching.config import PreflightError
from ce_mm.launching.model import check_fit, check_training

pytestmark = pytest.mark.usefixtures("complete_run")
WIDE = MODEL | dict(backbone=dict(type="LeNet5", num_classes=3))
RESNET = dict(type="ImageClassifier", backbone=dict(type="ResNet", depth=18), head=dict(type="ClsHead"))


def check_test(checkpoint="fits.pth", **changes):
    check_fit(config(load_from=checkpoint, **changes))


def initialised(checkpoint, **settings):
    backbone = RESNET["backbone"] | dict(init_cfg=dict(type="Pretrained", checkpoint=checkpoint, **settings))
    return config(model=RESNET | dict(backbone=backbone))


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        (dict(load_from="absent.pth"), "load_from"),
        (dict(load_from="absent.pth", resume=True), "--resume"),
        (dict(model=MODEL | dict(init_cfg=[dict(type="Pretrained", checkpoint="absent.pth")])), "init_cfg of model"),
    ],
)
def test_a_checkpoint_to_start_from_must_exist(changes, setting):
    with pytest.raises(PreflightError, match=rf"^{setting}: absent\.pth: "):
        check_training(config(**changes))


def test_resuming_by_itself_reads_the_last_checkpoint_or_none():
    Path("out").mkdir()
    check_training(config(resume=True))
    Path("out/last_checkpoint").write_text("cut.pth")
    Path("cut.pth").write_bytes(Path("fits.pth").read_bytes()[:500])
    with pytest.raises(PreflightError, match=r"^--resume: cut\.pth: "):
        check_training(config(resume=True))
    check_training(config())


@pytest.mark.parametrize("text", ["", "absent.pth"])
def test_a_last_checkpoint_that_names_none_is_said(text):
    Path("out").mkdir()
    Path("out/last_checkpoint").write_text(text)
    with pytest.raises(PreflightError, match=r"^--resume: out/last_checkpoint: (is empty|names 'absent)"):
        check_training(config(resume=True))


def test_weights_alone_start_a_training_and_do_not_resume_one():
    check_training(config(load_from="fits.pth"))
    with pytest.raises(PreflightError, match=r"^--resume: fits\.pth: no training can go on from it, as meta"):
        check_training(config(load_from="fits.pth", resume=True))


@pytest.mark.parametrize(
    "state", [{}, {"a": 1}, {"state": {}, "param_groups": []}, {"state": {0: 5}, "param_groups": [{}]}]
)
def test_an_optimizer_goes_on_from_a_state_of_its_own(state):
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    saved = dict(meta=dict(epoch=1, iter=4), message_hub=hub, state_dict=state_dict())
    own = torch.optim.SGD(MODELS.build(MODEL).parameters(), lr=0.1).state_dict()
    settings = config(load_from="saved.pth", resume=True, optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)))
    torch.save(saved | dict(optimizer=own), "saved.pth")
    check_training(settings)
    torch.save(saved | dict(optimizer=state), "saved.pth")
    with pytest.raises(PreflightError, match=r"^--resume: the optimizer cannot go on from the checkpoint's state"):
        check_training(settings)


def test_the_parts_of_a_checkpoint_from_all_processes_are_left_to_the_runner_that_saved_them():
    Path("parts.pth").mkdir()
    check_training(config(load_from="parts.pth", resume=True, runner_type="FlexibleRunner"))
    with pytest.raises(PreflightError, match="this is a folder"):
        check_training(config(load_from="parts.pth", resume=True))


def test_checkpoints_that_upstream_fetches_are_left_to_it():
    remote = "https://example.org/a.pth"
    check_training(config(load_from=remote))
    check_training(initialised("torchvision://resnet18"))
    check_test(remote)


def test_a_model_that_cannot_be_built_is_an_error_with_the_place():
    for check in (check_training, check_fit):
        with pytest.raises(PreflightError, match=r"cannot be built: KeyError: .*resnet\.py, line \d+"):
            check(config(model=MODEL | dict(backbone=dict(type="ResNet", depth=7)), load_from="fits.pth"))


def test_names_are_taken_in_the_scope_in_which_the_runner_takes_them():
    cfg = config(model=MODEL | dict(type=ImageClassifier, backbone=dict(type=LeNet5), head=dict(type=ClsHead)))
    cfg.default_scope = None
    check_training(cfg)
    cfg.pop("default_scope")
    with pytest.raises(PreflightError, match=r"KeyError: '.* is not in the mmengine::model registry"):
        check_training(cfg)


def test_weights_from_a_parallel_run_and_without_batch_counters_fit():
    torch.save({f"module.{name}": value for name, value in state_dict().items()}, "parallel.pth")
    check_test("parallel.pth")
    weights = {name: value for name, value in state_dict(RESNET).items() if "num_batches_tracked" not in name}
    torch.save(weights, "old.pth")
    check_test("old.pth", model=RESNET)


def test_weights_that_do_not_fit_are_counted_and_the_first_of_each_kind_is_named():
    weights = state_dict()
    first, second, *_, last = list(weights)
    del weights[first], weights[second]
    weights["new.weight"] = weights[last]
    weights[last] = torch.zeros(3, 5)
    torch.save({"state_dict": weights}, "other.pth")
    with pytest.raises(PreflightError) as refusal:
        check_test("other.pth")
    assert str(refusal.value) == (
        f"other.pth does not fit the model of None: 2 missing keys (first: {first}), 1 unexpected keys (first: "
        f"new.weight), 1 weights of another shape (first: {last}, (3, 5) in the checkpoint, (2,) in the model); "
        "expected weights of the same architecture"
    )


def save_sizes_of_another(model, path, prefix=""):
    torch.save({prefix + name: value.new_zeros(*value.shape, 2) for name, value in state_dict(model).items()}, path)


def test_a_training_does_not_start_from_weights_of_which_none_fits():
    save_sizes_of_another(MODEL, "other.pth")
    with pytest.raises(PreflightError, match=r"^load_from: other\.pth: none of its weights fits"):
        check_training(config(load_from="other.pth"))
    check_training(config(model=WIDE, load_from="fits.pth"))  # all but the classes


def test_single_numbers_that_fit_any_network_are_not_what_a_training_starts_from():
    narrow, wide = (
        RESNET | dict(backbone=dict(type="CEResNet", depth=18, stem_channels=size, base_channels=size))
        for size in (16, 32)
    )
    torch.save(state_dict(narrow), "narrow.pth")
    with pytest.raises(PreflightError, match=r"^load_from: narrow\.pth: none of its weights fits"):
        check_training(config(model=wide, load_from="narrow.pth"))


def test_a_backbone_does_not_start_from_weights_of_which_none_fits():
    torch.save(state_dict(RESNET), "whole.pth")
    with pytest.raises(PreflightError, match=r"^init_cfg of model.backbone: whole\.pth: none of its weights fits"):
        check_training(initialised("whole.pth"))  # named backbone.conv1.weight, where conv1.weight is looked for
    check_training(initialised("whole.pth", prefix="backbone."))
    with pytest.raises(PreflightError, match=r"init_cfg of model.backbone: whole\.pth: cannot be loaded: Assert.*neck"):
        check_training(initialised("whole.pth", prefix="neck."))


def test_what_a_checkpoint_to_start_from_replaces_need_not_fit():
    torch.save(state_dict(RESNET), "whole.pth")
    cfg = initialised("whole.pth")
    cfg.load_from = "whole.pth"
    check_training(cfg)


def test_weights_that_a_module_translates_count_as_fitting():
    weights = {f"old_{name}": value for name, value in state_dict(RESNET).items()}
    torch.save(weights, "old.pth")

    class Translates(BaseModule):
        def __init__(self):
            super().__init__(init_cfg=dict(type="Pretrained", checkpoint="old.pth"))
            self.conv = torch.nn.Conv2d(3, 64, 7, bias=False)

        def init_weights(self):
            self.conv.load_state_dict(dict(weight=torch.load("old.pth")["old_backbone.conv1.weight"]))

        def train_step(self, *args):
            pass

    check_training(config(model=dict(type=Translates)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(optimizer=dict(type="SGD", lr=-1.0)), "optim_wrapper cannot be built: ValueError: Invalid learning rate"),
        (dict(optimizer=dict(type="SGD", lr=1.0), clip_grad=3), "optim_wrapper cannot be built: AssertionError"),
        (dict(type="AmpOptimWrapper", optimizer=dict(type="SGD", lr=1.0)), "cannot be built: AssertionError: .* gpu"),
    ],
)
def test_an_optimizer_that_cannot_be_built_is_one_line(settings, said, monkeypatch):
    for name in ("cuda", "npu", "mlu", "musa"):
        monkeypatch.setattr(amp_optimizer_wrapper, f"is_{name}_available", lambda: False)
    with pytest.raises(PreflightError, match=said) as refusal:
        check_training(config(optim_wrapper=settings))
    assert "\n" not in str(refusal.value)


def test_an_optimizer_that_needs_other_processes_is_left_to_them():
    check_training(config(optim_wrapper=dict(optimizer=dict(type="ZeroRedundancyOptimizer", optimizer_type="SGD"))))


def test_views_of_a_picture_are_merged_for_boxes_alone():
    detector = dict(
        type="FasterRCNN", rpn_head=dict(type="RPNHead", in_channels=64), roi_head=roi_head(), train_cfg=None,
        test_cfg=dict(rpn=None, rcnn=None),
        backbone=dict(type="ResNet", depth=18, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)),
    )
    tta = dict(type="DetTTAModel", tta_cfg=None, module=detector)
    check_test("https://example.org/a.pth", model=tta, default_scope="mmdet")
    tta["module"] = detector | dict(type="MaskRCNN", roi_head=roi_head(mask_head=dict(type="FCNMaskHead")))
    with pytest.raises(PreflightError, match="--tta: mmdet's DetTTAModel merges boxes, and no masks"):
        check_test("https://example.org/a.pth", model=tta, default_scope="mmdet")


def roi_head(**more):
    align = dict(
        type="SingleRoIExtractor", roi_layer=dict(type="RoIAlign", output_size=7), out_channels=64, featmap_strides=[4]
    )
    return dict(
        type="StandardRoIHead", bbox_roi_extractor=align, bbox_head=dict(type="Shared2FCBBoxHead", in_channels=64),
        **({"mask_roi_extractor": align} if more else {}), **more,
    )


def test_the_weights_under_views_of_a_picture_are_the_models_own():
    tta = dict(type="AverageClsScoreTTA", module=MODEL)
    check_test(model=tta)
    save_sizes_of_another(MODEL, "other.pth")
    with pytest.raises(PreflightError, match=r"other\.pth does not fit"):
        check_test("other.pth", model=tta)


def test_nothing_is_printed_or_logged_on_the_way(capfd):
    check_training(config(load_from="fits.pth", model=WIDE, optim_wrapper=dict(
        optimizer=dict(type="SGD", lr=0.1, weight_decay=0.1), paramwise_cfg=dict(norm_decay_mult=0.0))))
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET
