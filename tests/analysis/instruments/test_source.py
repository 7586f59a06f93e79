"""Model and data from a config and a checkpoint: the pictures that were asked for, and the config's own figure."""
import pytest
import torch
from mmengine.structures import InstanceData

from ce_mm.analysis.instruments.source import Source


def test_the_checkpoint_s_weights_are_in_the_network_which_is_in_eval_mode(there):
    config, checkpoint = there.classifier
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"]["backbone.bn1.norm.weight"].fill_(0.25)
    torch.save(state, "other.pth")
    model = Source(config, "other.pth").load_model()
    assert not any(module.training for module in model.modules())
    assert (model.backbone.bn1.weight == 0.25).all()


def test_the_network_is_to_be_had_without_data(there, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    source = Source(*there.classifier)
    source.load_model()
    with pytest.raises(ValueError, match=r"^test_dataloader: data/shapes/crops/val"):
        source.load()


def labels_of(subject):
    return [sample.gt_label.item() for batch in subject.dataloader for sample in batch["data_samples"]]


def test_samples_are_spread_over_a_data_set_that_is_sorted_by_class(there):
    everything = Source(*there.classifier).load()
    assert labels_of(everything) == [label for label in range(6) for _ in range(2)]
    assert everything.samples == 12
    assert labels_of(Source(*there.classifier, samples=6).load()) == list(range(6))
    assert Source(*there.classifier, samples=1000).load().samples == 12


def test_a_classifier_s_figure_is_its_accuracy(there, monkeypatch):
    subject = Source(*there.classifier, samples=6).load()

    def name_the_first_four(batch):
        for sample in batch["data_samples"]:
            label = sample.gt_label.item()
            sample.set_pred_score(torch.eye(6)[label if label < 4 else 0])
        return batch["data_samples"]

    monkeypatch.setattr(subject.model, "test_step", name_the_first_four)
    assert subject.evaluate() == pytest.approx(100 * 4 / 6)
    assert subject.metric == "accuracy/top1"


def test_a_detector_s_figure_is_its_box_ap_over_the_pictures_taken(there, monkeypatch, capsys):
    subject = Source(*there.detector, samples=2).load()

    def find_everything(batch):
        for sample in batch["data_samples"]:
            truth = sample.gt_instances
            sample.pred_instances = InstanceData(
                bboxes=truth.bboxes.tensor,
                labels=truth.labels,
                scores=torch.ones(len(truth)),
                masks=torch.from_numpy(truth.masks.masks).bool(),
            )
        return batch["data_samples"]

    def find_nothing(batch):
        find_everything(batch)
        for sample in batch["data_samples"]:
            sample.pred_instances = sample.pred_instances[:0]
        return batch["data_samples"]

    monkeypatch.setattr(subject.model, "test_step", find_nothing)
    with pytest.raises(ValueError, match="the evaluator gives no figure: the network finds nothing"):
        subject.evaluate()
    monkeypatch.setattr(subject.model, "test_step", find_everything)
    assert subject.evaluate() == 1
    assert subject.metric == "coco/bbox_mAP"
    monkeypatch.setattr(subject.model, "test_step", find_nothing)
    assert subject.evaluate() == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(config="absent.py"), r"config file absent\.py: there is no such file"),
        (dict(checkpoint="absent.pth"), r"absent\.pth: there is no such checkpoint"),
        (dict(cfg_options={"model.backbone.depth": 34}), "does not fit the model"),
        (dict(cfg_options={"test_dataloader.dataset.data_root": "nowhere"}), "nowhere"),
        (dict(device="warp"), r"the device 'warp' cannot be used: .*; expected cpu, or cuda"),
        (dict(samples=0), "at least one sample, got 0"),
        (dict(cfg_options=dict(test_dataloader=None)), "has no test_dataloader or test_evaluator"),
    ],
)
def test_what_cannot_be_used_is_named(there, changes, said):
    config, checkpoint = there.classifier
    with pytest.raises(ValueError, match=said) as refusal:
        Source(**dict(config=config, checkpoint=checkpoint) | changes).load()
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_with_code_in_it_is_refused(there):
    class Evil:
        def __reduce__(self):
            return exec, ("open('ran', 'w')",)

    torch.save(dict(state_dict={}, meta=Evil()), "evil.pth")
    with pytest.raises(ValueError, match="more than data"):
        Source(there.classifier[0], "evil.pth").load_model()
    assert not (there.folder / "ran").exists()
