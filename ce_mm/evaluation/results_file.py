"""Results files of a detector, read as data: COCO's result JSON, or the pickle that mmdet's test script dumps.

Both become lists of COCO result entries, one list per metric, checked so that pycocotools cannot stumble over them.

* A JSON file's entries go to pycocotools as they stand. So where a mask result also has a box, pycocotools takes the
  box's area for the result's size (it decides what counts as small, medium and large), not the mask's.
* A pickle's predictions become what mmdet's CocoMetric makes of them: boxes from corners to x, y, width, height in
  double precision; masks without boxes, hence sized by their own area, and with ``mask_scores`` where there are any.
  Label i is the i-th category in the order of the annotation file, as in mmdet (``get_cat_ids`` keeps the file's order,
  whatever the order of ``classes``). A pickle does not say which classes its model had: for a model with fewer classes
  than the annotation file has categories, give an annotation file that holds those categories only.

A pickle can run any code when it is read in the ordinary way. Here each name that it asks for is looked up in a short
list of stand-ins for arrays, tensors and plain containers, and anything else ends the reading.
"""

import collections
import io
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ce_mm.evaluation.annotations import check_file, is_box, is_number, load_json, require_fields

EXPECTED = "expected COCO results (.json) or what mmdet's test dumps with --out (.pkl, .pickle)"

# COCO's compressed run lengths: six bits a character from '0' on, the highest says that the number goes on. pycocotools
# reads beyond the end of a string whose last number goes on.
_RUN_LENGTHS = re.compile("[0-o]*[0-O]")


class ResultsError(ValueError):
    """Results that cannot be read, evaluated or written: the message names the file, the fault and what helps."""


def read_results(path: Path, dataset: dict[str, Any], metrics: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Read and check a results file.

    Args:
        path: a ``.json``, ``.pkl`` or ``.pickle`` file.
        dataset: what `read_annotations` returns for the annotation file that the results belong to.
        metrics: of ``bbox`` and ``segm``.

    Returns:
        For each metric a new list of result entries: image_id, category_id, score, and bbox (x, y, width, height in
        pixels), segmentation (compressed run lengths) or both.

    Raises:
        ResultsError: the file cannot be read, or is not a results file, or its entries do not fit the annotations or
            lack what a metric needs; a pickle that asks for anything but arrays, tensors and plain containers.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        by_metric = _from_json(path, metrics)
    elif suffix in (".pkl", ".pickle"):
        by_metric = _from_pickle(path, dataset["categories"], metrics)
    else:
        raise ResultsError(f"{path}: unknown extension {suffix!r}; {EXPECTED}")
    images = {image["id"]: image for image in dataset["images"]}
    categories = {category["id"] for category in dataset["categories"]}
    for metric, entries in by_metric.items():
        _require_known(path, "image_id", entries, images)
        _require_known(path, "category_id", entries, categories)
        _check_values(path, metric, entries, images)
    return by_metric


def _from_json(path: Path, metrics: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    entries = load_json(path, ResultsError, EXPECTED)
    if not isinstance(entries, list):
        raise ResultsError(f"{path}: holds a {type(entries).__name__}; expected a list of results (COCO's format)")
    require_fields(entries, ("image_id", "category_id", "score"), f"{path}: results", ResultsError)
    shapes = {"bbox": ("bbox",), "segm": ("segmentation", "bbox")}  # what a metric needs first, then what it also uses
    by_metric = {}
    for metric in metrics:
        needed = shapes[metric][0]
        without = [index for index, entry in enumerate(entries) if not entry.get(needed)]
        if without:
            other = next(iter(set(shapes) - {metric}))
            raise ResultsError(
                f"{path}: {metric} needs {needed}, which {len(without)} of {len(entries)} results lack (the first is "
                f"results[{without[0]}]); where there is none, evaluate {other} alone (--metrics {other})"
            )
        by_metric[metric] = [
            {field: entry[field] for field in ("image_id", "category_id", "score")}
            | {shape: entry[shape] for shape in shapes[metric] if entry.get(shape)}
            for entry in entries
        ]
    return by_metric


def _from_pickle(
    path: Path, categories: list[dict[str, Any]], metrics: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    samples = _load_pickle(path)
    if not isinstance(samples, list):
        raise ResultsError(f"{path}: holds a {type(samples).__name__}; expected a list, one entry for each picture")
    require_fields(samples, ("img_id", "pred_instances"), f"{path}: pictures", ResultsError)
    predictions = [sample["pred_instances"] for sample in samples]
    require_fields(predictions, ("bboxes", "scores", "labels"), f"{path}: pred_instances", ResultsError)
    by_metric: dict[str, list[dict[str, Any]]] = {metric: [] for metric in metrics}
    seen = set()
    for sample, prediction in zip(samples, predictions, strict=True):
        image_id = sample["img_id"]
        if type(image_id) not in (int, str):
            raise ResultsError(f"{path}: img_id is {image_id!r}; expected an integer, the id in the annotation file")
        if image_id in seen:
            raise ResultsError(f"{path}: img_id {image_id} comes twice; each picture must be there once")
        seen.add(image_id)
        where = f"{path}: image_id {image_id}"
        category_ids = _category_ids(prediction["labels"], categories, where)
        count = len(category_ids)
        boxes = _values(prediction["bboxes"], (count, 4), "bboxes", where)
        scores = _values(prediction["scores"], (count,), "scores", where)
        if "bbox" in by_metric:
            for box, score, category_id in zip(boxes, scores, category_ids, strict=True):
                x1, y1, x2, y2 = box
                entry = {"image_id": image_id, "category_id": category_id, "score": score}
                by_metric["bbox"].append({**entry, "bbox": [x1, y1, x2 - x1, y2 - y1]})
        if "segm" in by_metric:
            masks = prediction.get("masks", [])
            if not isinstance(masks, list) or len(masks) != count:
                raise ResultsError(
                    f"{where}: segm needs the segmentation of each prediction, a list of {count} masks; for a detector "
                    "without masks evaluate bbox alone (--metrics bbox)"
                )
            if "mask_scores" in prediction:
                scores = _values(prediction["mask_scores"], (count,), "mask_scores", where)
            for mask, score, category_id in zip(masks, scores, category_ids, strict=True):
                entry = {"image_id": image_id, "category_id": category_id, "score": score}
                by_metric["segm"].append({**entry, "segmentation": mask})
    return by_metric


def _category_ids(labels: Any, categories: list[dict[str, Any]], where: str) -> list[int]:
    labels = _values(labels, (None,), "labels", where)
    for label in labels:
        if type(label) is not int or not 0 <= label < len(categories):
            raise ResultsError(
                f"{where}: the label {label!r} is out of range; expected an integer from 0 to {len(categories) - 1}, "
                "the place of a category in the annotation file"
            )
    return [categories[label]["id"] for label in labels]


def _values(array: Any, shape: tuple[int | None, ...], name: str, where: str) -> list[Any]:
    """The numbers of a tensor or array of this shape, where None stands for any length."""
    if not isinstance(array, torch.Tensor | np.ndarray):
        raise ResultsError(f"{where}: {name} is a {type(array).__name__}; expected a tensor of the shape {shape}")
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise ResultsError(f"{where}: {name} has the shape {tuple(array.shape)}; expected {shape}")
    return array.tolist()


def _require_known(path: Path, field: str, entries: list[dict[str, Any]], known: Any) -> None:
    values = [entry[field] for entry in entries]
    unknown = [value for value in values if not isinstance(value, int | float | str) or value not in known]
    if unknown:
        raise ResultsError(
            f"{path}: the {field} {unknown[0]!r} is not in the annotation file, as with {len(unknown)} of "
            f"{len(values)} results; expected results on the pictures and categories of that file"
        )


def _check_values(path: Path, metric: str, entries: list[dict[str, Any]], images: dict[Any, dict[str, Any]]) -> None:
    for index, entry in enumerate(entries):
        where = f"{path}: {metric} result {index} (image_id {entry['image_id']})"
        if not is_number(entry["score"]):
            raise ResultsError(f"{where} has the score {entry['score']!r}; expected a finite number")
        if "bbox" in entry and not is_box(entry["bbox"]):
            raise ResultsError(f"{where} has the bbox {entry['bbox']!r}; expected finite x, y, width and height")
        # pycocotools looks at the first entry only and then expects all to be alike.
        if ("bbox" in entry) != ("bbox" in entries[0]):
            raise ResultsError(f"{where}: only some of the results have a bbox; expected one in all of them or in none")
        if metric == "segm":
            image = images[entry["image_id"]]
            _check_mask(entry["segmentation"], [image["height"], image["width"]], where)


def _check_mask(mask: Any, size: list[int], where: str) -> None:
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str | bytes):
        raise ResultsError(
            f"{where}: the segmentation is not a compressed run-length encoding; expected what pycocotools.mask.encode "
            "returns (size and counts)"
        )
    if mask.get("size") != size:
        raise ResultsError(f"{where}: the mask has the size {mask.get('size')}; expected the picture's, {size}")
    counts = mask["counts"] if isinstance(mask["counts"], str) else mask["counts"].decode("latin1")
    if not _RUN_LENGTHS.fullmatch(counts):
        raise ResultsError(f"{where}: the mask's counts are damaged; expected what pycocotools.mask.encode returns")


def _load_pickle(path: Path) -> Any:
    check_file(path, ResultsError, EXPECTED)
    try:
        with path.open("rb") as file:
            return _DataUnpickler(file).load()
    except Exception as reason:  # damaged pickles raise nearly anything
        first_line = str(reason).partition("\n")[0] or type(reason).__name__
        raise ResultsError(f"{path}: not read as results, {first_line}; {EXPECTED}") from reason


class _DataUnpickler(pickle.Unpickler):
    """Knows numbers, text, containers, arrays and tensors; asks the interpreter for nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise _refusal(f"{module}.{name}")
        return _STAND_INS[module, name]


def _refusal(name: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"the pickle asks for {name}, which is no data (nothing of it was run)")


class _StandIn:
    """What a pickle gets where it names a function or a class: it can call it and do nothing else with it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle tries to change a function")


class _Number:
    """Stands for numpy.dtype. Of the state in the pickle only the byte order is used: other parts can break numpy."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *align_and_copy: Any) -> None:
        if not re.fullmatch("[biuf][1248]", code):
            raise _refusal(f"numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that is filled with numbers only."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, number, is_fortran, data = state
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array in the pickle is not made of numbers")
        super().__setstate__((version, shape, number.dtype, is_fortran, data))


def _text_to_bytes(text: str, encoding: str) -> bytes:
    """What ``_codecs.encode`` is there for in a pickle of protocol 2, which has no bytes."""
    if encoding != "latin1":
        raise _refusal(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _load_storage(data: bytes) -> torch.storage.TypedStorage:
    """A tensor's numbers: a pickle of PyTorch's within the pickle, which PyTorch itself would read without any care."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's message is a page that recommends to switch the protection off.
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise _refusal(f"{name.group(1)} within a tensor" if name else "more than numbers in a tensor") from error


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *grad_and_hooks: Any) -> torch.Tensor:
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, collections.OrderedDict())


_STAND_INS = {
    ("collections", "OrderedDict"): _StandIn(collections.OrderedDict),
    ("_codecs", "encode"): _StandIn(_text_to_bytes),
    ("__builtin__", "bytes"): _StandIn(lambda: b""),  # protocol 2 writes empty bytes so
    ("torch", "Size"): _StandIn(tuple),
    ("torch._utils", "_rebuild_tensor_v2"): _StandIn(_rebuild_tensor),
    ("torch.storage", "_load_from_bytes"): _StandIn(_load_storage),
    ("numpy", "ndarray"): "numpy.ndarray",  # only ever named, as an argument of _reconstruct
    ("numpy", "dtype"): _StandIn(_Number),
}
for _core in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
    _STAND_INS |= {
        (f"{_core}.multiarray", "_reconstruct"): _StandIn(lambda *args: _Array(0)),
        (f"{_core}.multiarray", "scalar"): _StandIn(lambda number, data: np.frombuffer(data, number.dtype)[0].item()),
        (f"{_core}.numeric", "_frombuffer"): _StandIn(
            lambda data, number, shape, order: np.frombuffer(data, number.dtype).reshape(shape, order=order)
        ),
    }
