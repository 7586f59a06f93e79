import collections
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ce_mm.evaluation import ResultsError, results_file
from ce_mm.evaluation.results_file import read_results

BOTH = ("bbox", "segm")


def as_samples(detections: list[dict], labels: dict[int, int]) -> list[dict]:
    """What mmdet dumps for these detections, as far as it is evaluated, beside other things that it dumps."""
    samples = []
    for image_id in sorted({entry["image_id"] for entry in detections}):
        entries = [entry for entry in detections if entry["image_id"] == image_id]
        boxes = torch.tensor([entry["bbox"] for entry in entries])
        boxes[:, 2:] += boxes[:, :2]
        prediction = {
            "bboxes": boxes,
            "scores": torch.tensor([entry["score"] for entry in entries]),
            "labels": torch.tensor([labels[entry["category_id"]] for entry in entries]),
            "masks": [
                {"size": entry["segmentation"]["size"], "counts": entry["segmentation"]["counts"].encode()}
                for entry in entries
            ],
        }
        other = {"img_path": f"{image_id}.jpg", "ori_shape": (80, 100), "scale_factor": (np.float32(1.5), 1.5)}
        samples.append(other | {"img_id": image_id, "pred_instances": prediction})
    return samples


@pytest.fixture
def samples(detections: list[dict]) -> list[dict]:
    return as_samples(detections, {7: 0, 3: 1})


@pytest.fixture
def write_pickle(tmp_path: Path) -> Callable[..., Path]:
    def write(content: Any, protocol: int = 2) -> Path:  # mmengine dumps protocol 2
        path = tmp_path / "results.pkl"
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        return path

    return write


def test_json_entries_keep_what_the_metric_uses(dataset, detections, write_results) -> None:
    results = write_results([entry | {"caption": "a dog", "area": 3} for entry in detections])
    boxes = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in detections]
    assert read_results(results, dataset, BOTH) == {"bbox": boxes, "segm": detections}


def test_json_masks_need_no_boxes(dataset, detections, write_results) -> None:
    masks = [{key: value for key, value in entry.items() if key != "bbox"} for entry in detections]
    assert read_results(write_results(masks), dataset, ["segm"]) == {"segm": masks}


def test_the_lists_of_the_metrics_share_no_entry(dataset, detections, write_results) -> None:
    read = read_results(write_results(detections), dataset, BOTH)
    assert not {id(entry) for entry in read["bbox"]} & {id(entry) for entry in read["segm"]}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("as_numpy", [False, True])
def test_a_pickle_becomes_what_mmdet_makes_of_it(
    dataset, detections, samples, write_pickle, protocol, as_numpy
) -> None:
    if as_numpy:
        for sample in samples:
            prediction = sample["pred_instances"]
            sample["pred_instances"] = {
                key: value if key == "masks" else value.numpy() for key, value in prediction.items()
            }
    read = read_results(write_pickle(samples, protocol), dataset, BOTH)
    for entry, box, mask in zip(detections, read["bbox"], read["segm"], strict=True):
        common = {key: entry[key] for key in ("image_id", "category_id")} | {"score": float(np.float32(entry["score"]))}
        assert box == common | {"bbox": entry["bbox"]}
        counts = entry["segmentation"]["counts"].encode()
        assert mask == common | {"segmentation": {"size": [80, 100], "counts": counts}}


def test_labels_follow_the_order_of_the_categories_in_the_file(dataset, samples, write_pickle) -> None:
    dataset["categories"].reverse()
    read = read_results(write_pickle(samples), dataset, ["bbox"])
    assert [entry["category_id"] for entry in read["bbox"]] == [3, 7, 3]


def test_boxes_of_a_pickle_are_subtracted_in_double_precision(dataset, samples, write_pickle) -> None:
    corners = torch.tensor([0.1, 0.2, 33.3, 44.4])
    samples[1]["pred_instances"]["bboxes"][0] = corners
    x1, y1, x2, y2 = corners.double().tolist()
    assert read_results(write_pickle(samples), dataset, ["bbox"])["bbox"][-1]["bbox"] == [x1, y1, x2 - x1, y2 - y1]


def test_mask_scores_count_for_masks_only(dataset, samples, write_pickle) -> None:
    for sample in samples:
        sample["pred_instances"]["mask_scores"] = torch.full_like(sample["pred_instances"]["scores"], 0.25)
    read = read_results(write_pickle(samples), dataset, BOTH)
    assert {entry["score"] for entry in read["segm"]} == {0.25}
    assert 0.25 not in {entry["score"] for entry in read["bbox"][:2]}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [torch.zeros, np.zeros])
def test_a_picture_without_detections_adds_nothing(dataset, write_pickle, protocol, kind) -> None:
    prediction = {"bboxes": kind((0, 4)), "scores": kind((0,)), "labels": kind((0,))}
    results = write_pickle([{"img_id": 1, "pred_instances": prediction}], protocol)
    assert read_results(results, dataset, BOTH) == {"bbox": [], "segm": []}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_other_precision_are_read(dataset, samples, write_pickle, dtype) -> None:
    samples[0]["pred_instances"]["scores"] = torch.tensor([0.5, 0.25], dtype=dtype)
    read = read_results(write_pickle(samples), dataset, ["bbox"])
    assert [entry["score"] for entry in read["bbox"][:2]] == [0.5, 0.25]


def test_tensors_that_view_a_larger_one_are_read(dataset, samples, write_pickle) -> None:
    samples[0]["pred_instances"]["scores"] = torch.arange(6).reshape(2, 3)[:, 1] / 8
    read = read_results(write_pickle(samples), dataset, ["bbox"])
    assert [entry["score"] for entry in read["bbox"][:2]] == [0.125, 0.5]


@pytest.mark.parametrize(
    "array",
    [np.asfortranarray([[1, 2], [3, 4]]), np.array([1.5, -2], "f2"), np.array([True, False]), np.array([], np.uint8)],
)
def test_arrays_of_any_layout_come_back_equal(write_pickle, array) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        read = results_file._load_pickle(write_pickle(array, protocol))
        assert np.array_equal(read, array) and read.dtype.kind == array.dtype.kind


class TestABadFileGivesOneErrorThatNamesIt:
    @pytest.mark.parametrize("name", ["none.json", "none.pkl", "none.pickle"])
    def test_missing(self, tmp_path, dataset, name) -> None:
        with pytest.raises(ResultsError, match=f"{name}: no such file"):
            read_results(tmp_path / name, dataset, BOTH)

    @pytest.mark.parametrize("name", ["folder.json", "folder.pkl"])
    def test_folder(self, tmp_path, dataset, name) -> None:
        (tmp_path / name).mkdir()
        with pytest.raises(ResultsError, match=f"{name}: is not a regular file"):
            read_results(tmp_path / name, dataset, BOTH)

    @pytest.mark.parametrize("name", ["results.json", "results.pkl"])
    def test_empty(self, tmp_path, dataset, name) -> None:
        (tmp_path / name).touch()
        with pytest.raises(ResultsError, match=f"{name}: not "):
            read_results(tmp_path / name, dataset, BOTH)

    @pytest.mark.parametrize("name", ["results.txt", "results", "results.json.gz"])
    def test_unknown_extension(self, tmp_path, dataset, name) -> None:
        (tmp_path / name).write_text("[]")
        with pytest.raises(ResultsError, match="unknown extension"):
            read_results(tmp_path / name, dataset, BOTH)

    def test_not_json(self, tmp_path, dataset) -> None:
        (tmp_path / "results.json").write_text('[{"image_id": 1')
        with pytest.raises(ResultsError, match="not JSON"):
            read_results(tmp_path / "results.json", dataset, BOTH)

    def test_json_that_is_no_list(self, annotations, dataset) -> None:
        with pytest.raises(ResultsError, match="holds a dict; expected a list of results"):
            read_results(annotations, dataset, BOTH)

    @pytest.mark.parametrize("content", [{}, "text", 3, torch.zeros(2)])
    def test_a_pickle_that_is_no_list(self, dataset, write_pickle, content) -> None:
        with pytest.raises(ResultsError, match="expected a list, one entry for each picture"):
            read_results(write_pickle(content), dataset, BOTH)

    def test_a_pickle_that_broke_off(self, dataset, samples, write_pickle) -> None:
        path = write_pickle(samples)
        whole = path.read_bytes()
        for length in (1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(ResultsError, match=r"results\.pkl: not read as results"):
                read_results(path, dataset, BOTH)

    def test_text_in_place_of_a_pickle(self, tmp_path, dataset) -> None:
        (tmp_path / "results.pkl").write_text("[]")
        with pytest.raises(ResultsError, match="not read as results"):
            read_results(tmp_path / "results.pkl", dataset, BOTH)

    def test_a_tensor_that_repeats_one_number_a_billion_times(self, dataset, samples, write_pickle) -> None:
        samples[1]["pred_instances"]["labels"] = torch.zeros(1, dtype=torch.long).expand(10**9)
        with pytest.raises(ResultsError, match=r"a tensor of the shape \[1000000000\] claims more than the 1 numbers"):
            read_results(write_pickle(samples), dataset, BOTH)


@pytest.mark.parametrize("size", [np.zeros(2), [torch.zeros(2), 100], [80.0, 100.0]])
def test_a_size_of_a_mask_that_is_no_pair_of_integers(dataset, samples, write_pickle, size) -> None:
    samples[1]["pred_instances"]["masks"][0]["size"] = size
    with pytest.raises(ResultsError, match=r"has the size .*; expected the picture's, \[80, 100\]"):
        read_results(write_pickle(samples), dataset, BOTH)


LEVELS = 2_000_000
TUPLES = pickle.NONE + pickle.TUPLE1 * LEVELS
UNFOLDED = pickle.NONE + (pickle.BINPUT + b"\0" + pickle.BINGET + b"\0" + pickle.TUPLE2) * 60
READ_EACH = """
import sys
from pathlib import Path
from ce_mm.evaluation.results_file import ResultsError, read_results
for path in sys.argv[1:]:
    try:
        read_results(Path(path), {"images": [], "categories": []}, ["bbox"])
    except ResultsError as error:
        print(error)
"""


def test_no_depth_of_a_pickle_ends_the_process(tmp_path) -> None:
    value = pickle.NONE + pickle.SETITEM
    expected = {
        TUPLES: "pictures[0] is a list; expected an object",
        pickle.EMPTY_LIST * LEVELS + pickle.APPEND * (LEVELS - 1): "pictures[0] is a list; expected an object",
        (pickle.EMPTY_DICT + pickle.BININT1 + b"\0") * LEVELS + pickle.NONE + pickle.SETITEM * LEVELS: "holds a dict",
        pickle.EMPTY_DICT + TUPLES + value: "unhashable type",
        pickle.EMPTY_DICT + UNFOLDED + value: "unhashable type",
        pickle.MARK + TUPLES + pickle.FROZENSET: "unhashable type",
    }
    paths = [tmp_path / f"{index}.pkl" for index in range(len(expected))]
    for path, pickled in zip(paths, expected, strict=True):
        path.write_bytes(pickle.PROTO + b"\4" + pickled + pickle.STOP)
    ended = subprocess.run([sys.executable, "-c", READ_EACH, *paths], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for path, line, said in zip(paths, ended.stdout.splitlines(), expected.values(), strict=True):
        assert line.startswith(str(path)) and said in line


class TestABadEntryIsNamed:
    @pytest.fixture
    def fails(self, dataset, detections, write_results):
        def fails(match: str, metrics=BOTH) -> None:
            with pytest.raises(ResultsError, match=match):
                read_results(write_results(detections), dataset, metrics)

        return fails

    @pytest.mark.parametrize("field", ["image_id", "category_id", "score"])
    def test_a_field_is_lacking(self, detections, fails, field) -> None:
        del detections[1][field]
        fails(rf"results\[1\] lacks {field};")

    def test_an_entry_that_is_no_object(self, detections, fails) -> None:
        detections[2] = [1, 2]
        fails(r"results\[2\] is a list")

    def test_boxes_are_lacking(self, detections, fails) -> None:
        del detections[1]["bbox"], detections[2]["bbox"]
        fails(r"bbox needs bbox, which 2 of 3 results lack \(the first is results\[1\]\); .*--metrics segm")

    def test_masks_are_lacking(self, detections, fails) -> None:
        for entry in detections:
            del entry["segmentation"]
        fails(r"segm needs segmentation, which 3 of 3 results lack .*--metrics bbox")

    def test_boxes_beside_some_of_the_masks(self, detections, fails) -> None:
        del detections[1]["bbox"]
        fails(r"segm results\[1\] lacks bbox; each entry must have", ["segm"])

    @pytest.mark.parametrize("field", ["image_id", "category_id"])
    @pytest.mark.parametrize("value", [99, "1", None, [1], {}, 1.5])
    def test_an_id_that_the_annotations_lack(self, detections, fails, field, value) -> None:
        detections[1][field], detections[2][field] = value, 98
        fails(rf"bbox results\[1\] .*: the {field} .* is not in the annotation file")

    def test_the_first_unknown_id_is_named(self, detections, fails) -> None:
        detections[1]["image_id"] = detections[2]["image_id"] = 4711
        fails("the image_id 4711 is not in")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.5", [0.5], 10**400])
    def test_a_score_that_is_no_number(self, detections, fails, value) -> None:
        detections[1]["score"] = value
        fails(r"results\[1\] \(image_id 1\): the score .* is not a finite number")

    @pytest.mark.parametrize(
        "value", [[0, 0, 5, float("nan")], [0, 0, float("inf"), 5], [1, 2, 3], [0, 0, 5, None], "x"]
    )
    def test_a_box_that_is_none(self, detections, fails, value) -> None:
        detections[1]["bbox"] = value
        fails(r"results\[1\] \(image_id 1\): the bbox .* is no box")

    @pytest.mark.parametrize("value", [[[1, 1, 5, 1, 5]], "mask", 3])
    def test_a_mask_of_no_form(self, detections, fails, value) -> None:
        detections[1]["segmentation"] = value
        fails("is no mask; expected polygons")

    @pytest.mark.parametrize("counts", ["", "P", "0o", "/", "0 1", "ab\ud800", "~"])
    def test_damaged_run_lengths(self, detections, fails, counts) -> None:
        detections[1]["segmentation"]["counts"] = counts
        fails("has damaged counts")

    @pytest.mark.parametrize("size", [[100, 80], [80], 80, None])
    def test_a_mask_of_another_size(self, detections, fails, size) -> None:
        detections[1]["segmentation"]["size"] = size
        fails(r"has the size .*; expected the picture's, \[80, 100\]")


class TestABadPredictionIsNamed:
    @pytest.fixture
    def fails(self, dataset, samples, write_pickle):
        def fails(match: str, metrics=BOTH) -> None:
            with pytest.raises(ResultsError, match=match):
                read_results(write_pickle(samples), dataset, metrics)

        return fails

    @pytest.mark.parametrize("field", ["img_id", "pred_instances"])
    def test_a_field_is_lacking(self, samples, fails, field) -> None:
        del samples[1][field]
        fails(rf"pictures\[1\] lacks {field};")

    @pytest.mark.parametrize("field", ["bboxes", "scores", "labels"])
    def test_a_field_of_the_prediction_is_lacking(self, samples, fails, field) -> None:
        del samples[1]["pred_instances"][field]
        fails(rf"pred_instances\[1\] lacks {field};")

    def test_masks_are_lacking(self, samples, fails) -> None:
        del samples[0]["pred_instances"]["masks"]
        fails("image_id 1: segm needs the segmentation of each prediction, a list of 2 masks")

    def test_a_mask_too_few(self, samples, fails) -> None:
        samples[0]["pred_instances"]["masks"].pop()
        fails("a list of 2 masks")

    @pytest.mark.parametrize("label", [2, -1])
    def test_a_label_out_of_range(self, samples, fails, label) -> None:
        samples[0]["pred_instances"]["labels"][1] = label
        fails(f"image_id 1: the label {label} is out of range; expected an integer from 0 to 1")

    def test_labels_that_are_no_integers(self, samples, fails) -> None:
        samples[0]["pred_instances"]["labels"] = torch.tensor([0.0, 1.0])
        fails("the label 0.0 is out of range")

    @pytest.mark.parametrize("field", ["bboxes", "scores", "labels", "mask_scores"])
    @pytest.mark.parametrize("value", [torch.tensor(1), torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 4, 1)])
    def test_a_tensor_of_another_shape(self, samples, fails, field, value) -> None:
        samples[0]["pred_instances"][field] = value
        fails(f"image_id 1: {field} has the shape")

    def test_a_list_in_place_of_a_tensor(self, samples, fails) -> None:
        samples[0]["pred_instances"]["scores"] = [0.5, 0.6]
        fails("scores is a list; expected a tensor")

    def test_a_picture_that_is_not_in_the_annotations(self, samples, fails) -> None:
        samples[1]["img_id"] = 4711
        fails("the image_id 4711 is not in the annotation file")

    def test_a_picture_twice(self, samples, fails) -> None:
        samples[1]["img_id"] = 1
        fails("image_id 1 is no id, or comes twice")

    def test_a_picture_without_an_id(self, samples, fails) -> None:
        samples[1]["img_id"] = None
        fails("image_id None is no id")

    def test_nan_scores(self, samples, fails) -> None:
        samples[1]["pred_instances"]["scores"][0] = torch.nan
        fails(r"bbox results\[2\] \(image_id 2\): the score nan is not")

    def test_nan_boxes(self, samples, fails) -> None:
        samples[1]["pred_instances"]["bboxes"][0, 3] = torch.nan
        fails(r"bbox results\[2\] \(image_id 2\): the bbox .* is no box")


class Calls:
    """Pickles as a call, which the ordinary reading of the pickle makes."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple:
        return self.function, self.args


class WithState(Calls):
    """Pickles as a call whose result is given a state."""

    def __init__(self, function: Callable, args: tuple, state: Any) -> None:
        super().__init__(function, *args)
        self.state = state

    def __reduce__(self) -> tuple:
        return self.function, self.args, self.state


class Storage(Calls):
    """Pickles as a tensor's storage whose bytes hold a pickle of ``content``."""

    def __init__(self, content: Any) -> None:
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=False)
        super().__init__(torch.storage._load_from_bytes, file.getvalue())


class TestNothingInAPickleRuns:
    @pytest.fixture
    def canary(self, tmp_path) -> Path:
        return tmp_path / "canary"

    @pytest.fixture
    def attack(self, canary) -> Calls:
        return Calls(os.system, f"touch {canary}")

    @pytest.fixture
    def refused(self, dataset, write_pickle, canary):
        def refused(content: Any, match: str) -> None:
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
                canary.unlink(missing_ok=True)
                path = write_pickle(content, protocol)
                with pytest.raises(ResultsError, match=match):
                    read_results(path, dataset, BOTH)
                assert not canary.exists()

        return refused

    def test_the_canary_shows_an_attack(self, attack, write_pickle, canary) -> None:
        pickle.loads(write_pickle(attack).read_bytes())
        assert canary.exists()

    def test_the_canary_shows_an_attack_in_a_tensor(self, attack, write_pickle, canary) -> None:
        pickle.loads(write_pickle(Storage([attack])).read_bytes())
        assert canary.exists()

    def test_a_command(self, attack, refused) -> None:
        refused(attack, f"asks for {os.system.__module__}.system")

    def test_a_command_deep_within_results(self, attack, samples, refused) -> None:
        samples[1]["pred_instances"]["extra"] = (collections.OrderedDict(a=[attack]),)
        refused(samples, f"asks for {os.system.__module__}.system")

    @pytest.mark.parametrize("function", [eval, exec, getattr, __import__, print, open])
    def test_a_builtin(self, refused, function) -> None:
        refused([Calls(function, "1")], f"asks for .*{function.__name__}")

    def test_a_command_in_a_tensor(self, attack, refused) -> None:
        refused([Storage([attack])], f"asks for {os.system.__module__}.system within a tensor")

    def test_a_tensor_in_a_tensor(self, attack, refused) -> None:
        refused([Storage([Storage([attack])])], "asks for torch.storage._load_from_bytes within a tensor")

    def test_a_tensor_without_numbers(self, refused) -> None:
        hooks = collections.OrderedDict()
        refused([Calls(torch._utils._rebuild_tensor_v2, [1], 0, (1,), (1,), False, hooks)], "not read as results")

    @pytest.mark.filterwarnings("ignore:TypedStorage")
    def test_a_tensor_that_reaches_beyond_its_storage(self, refused) -> None:
        storage, hooks = torch.zeros(3).storage(), collections.OrderedDict()
        tensor = Calls(torch._utils._rebuild_tensor_v2, storage, 0, (2,), (10**12,), False, hooks)
        refused([tensor], "claims more than the 3 numbers in its storage")

    def test_a_command_in_an_array(self, attack, refused) -> None:
        refused([np.array([attack, None])], "asks for")

    def test_objects_in_an_array(self, refused) -> None:
        refused([np.array([1, "a", None], dtype=object)], r"asks for numpy.dtype\('O8'\)")

    @pytest.mark.parametrize("dtype", ["O", [("a", "O")], [("a", "f4")], "V8", "U4", "M8[s]"])
    def test_a_type_that_is_no_number(self, refused, dtype) -> None:
        refused([np.dtype(dtype)], "asks for numpy.dtype")

    def test_numpy_functions(self, refused) -> None:
        refused([Calls(np.load, "x.npy")], "asks for numpy.*load")

    def test_a_type_of_numbers_turned_into_pointers(self, write_pickle) -> None:
        # The state of a dtype sets its flags, by which numpy takes numbers for the addresses of objects.
        pointers = WithState(np.dtype, ("i8", False, True), (3, "<", None, None, None, -1, -1, 63))
        content = Calls(np._core.multiarray.scalar, pointers, (7).to_bytes(8, "little"))
        assert results_file._load_pickle(write_pickle(content)) == 7

    def test_numbers_of_another_byte_order(self, refused) -> None:
        refused([np.array([1.5], ">f4")], "asks for big-endian numbers")

    def test_numbers_of_a_type_that_unfolds(self, tmp_path, dataset) -> None:
        path = tmp_path / "results.pkl"
        array = b"cnumpy._core.numeric\n_frombuffer\n" + pickle.MARK + pickle.EMPTY_LIST + UNFOLDED + pickle.EMPTY_LIST
        path.write_bytes(pickle.PROTO + b"\x02" + array + pickle.NONE + pickle.TUPLE + pickle.REDUCE + pickle.STOP)
        with pytest.raises(ResultsError, match="numbers of no type"):
            read_results(path, dataset, BOTH)

    def test_an_array_that_is_larger_than_its_data(self, refused) -> None:
        array = (np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"))
        refused([WithState(*array, (1, (1000,), np.dtype("f8"), False, b"12345678"))], "not read as results")

    def test_a_change_of_a_function(self, tmp_path, dataset) -> None:
        path = tmp_path / "results.pkl"
        set_state_of_function = b"ctorch._utils\n_rebuild_tensor_v2\n}b"
        path.write_bytes(pickle.PROTO + b"\x02" + set_state_of_function + pickle.STOP)
        with pytest.raises(ResultsError, match="tries to change a function"):
            read_results(path, dataset, BOTH)

    @pytest.mark.parametrize("made", [collections.OrderedDict(), torch.zeros(2)])
    def test_a_change_of_what_it_has_made(self, tmp_path, dataset, made) -> None:
        path = tmp_path / "results.pkl"
        path.write_bytes(pickle.dumps(made, 2)[:-1] + pickle.EMPTY_DICT + pickle.BUILD + pickle.STOP)
        with pytest.raises(ResultsError, match="or what it has made"):
            read_results(path, dataset, BOTH)

    def test_items_of_what_is_no_dict(self, tmp_path, dataset) -> None:
        path = tmp_path / "results.pkl"
        item = pickle.BININT1 + b"\0" + pickle.NONE + pickle.SETITEM
        path.write_bytes(pickle.dumps(torch.zeros(2), 2)[:-1] + item + pickle.STOP)
        with pytest.raises(ResultsError, match="sets items of what is no dict"):
            read_results(path, dataset, BOTH)

    def test_a_path(self, refused, tmp_path) -> None:
        refused([tmp_path], "asks for pathlib")

    def test_another_encoding(self, refused) -> None:
        import _codecs

        refused([Calls(_codecs.encode, "x", "rot13")], "asks for the encoding 'rot13'")
