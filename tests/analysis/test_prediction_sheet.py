"""The sheet of predictions: what is drawn changes with what is predicted and true, and bad files are named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ce_mm.analysis.prediction_sheet import draw_prediction_sheet
from ce_mm.commands.draw import main
from ce_mm.evaluation import AnnotationError, ResultsError
from ce_mm.files import DestinationError
from ce_mm.transforms import LoadImage, PictureError

HEIGHT, WIDTH = 40, 60


def rle(top: int, left: int) -> dict:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[top : top + 12, left : left + 16] = 1
    encoded = coco_mask.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def prediction(image_id: int, score: float = 0.9, category_id: int = 1, top: int = 9) -> dict:
    box = {"bbox": [20.0, float(top), 16.0, 12.0]}
    return {"image_id": image_id, "category_id": category_id, "score": score, "segmentation": rle(top, 20), **box}


class Files:
    """Five pictures; the second has no object."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.out = folder / "sheet.png"
        self.dataset = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(1, 6)
            ],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1, "bbox": [18, 8, 16, 12], "area": 192, "iscrowd": 0,
                 "segmentation": rle(8, 18)} for i in (1, 3, 4, 5)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        for image in self.dataset["images"]:
            Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(folder / image["file_name"])
        self.results = [prediction(1), prediction(3)]

    def draw(self, **kwargs) -> np.ndarray:
        (self.folder / "annotations.json").write_text(json.dumps(self.dataset))
        (self.folder / "results.json").write_text(json.dumps(self.results))
        draw_prediction_sheet(
            self.folder / "annotations.json", self.folder, self.folder / "results.json", self.out, **kwargs
        )
        return np.asarray(Image.open(self.out).convert("RGB"))


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


def test_the_same_files_give_the_same_sheet(files):
    assert (files.draw() == files.draw()).all()


@pytest.mark.parametrize(
    "other",
    [
        prediction(1, top=20),
        prediction(1, score=0.8),
        prediction(1, category_id=2),
        prediction(1) | {"bbox": [1.0, 1.0, 50.0, 30.0]},
    ],
    ids=["mask", "score", "category", "box"],
)
def test_the_sheet_shows_mask_score_category_and_box(files, other):
    before = files.draw(num_images=1)
    files.results = [other]
    assert (files.draw(num_images=1) != before).any()


def test_a_prediction_without_a_box_gets_that_of_its_mask(files):
    files.results = [prediction(1) | {"bbox": [20.0, 9.0, 16.0, 12.0]}]
    with_box = files.draw()
    del files.results[0]["bbox"]
    assert (files.draw() == with_box).all()


def test_predictions_below_the_threshold_are_not_drawn(files):
    files.results = [prediction(1, score=0.4)]
    below = files.draw(score_threshold=0.5)
    files.results = []
    assert (files.draw(score_threshold=0.5) == below).all()
    files.results = [prediction(1, score=0.6)]
    assert (files.draw(score_threshold=0.5) != below).any()


def test_a_missed_object_is_outlined(files):
    files.results = []
    before = files.draw(num_images=1)
    files.dataset["annotations"][0]["segmentation"] = rle(20, 30)
    assert (files.draw(num_images=1) != before).any()


def test_masks_given_as_polygons_are_outlined_too(files):
    files.results = []
    before = files.draw(num_images=1)
    files.dataset["annotations"][0]["segmentation"] = [[30, 20, 46, 20, 46, 32, 30, 32]]
    as_polygon = files.draw(num_images=1)
    files.dataset["annotations"][0]["segmentation"] = rle(20, 30)
    assert (as_polygon != before).any()
    assert (as_polygon == files.draw(num_images=1)).all()


def test_the_first_pictures_with_objects_are_shown(files):
    for unused in ("2.png", "4.png", "5.png"):
        (files.folder / unused).unlink()
    two = files.draw(num_images=2)
    assert two.shape[1] > 1.8 * files.draw(num_images=1).shape[1]


def test_pictures_stand_in_rows(files):
    one_row = files.draw(num_images=4)
    files.dataset["annotations"].append(files.dataset["annotations"][0] | {"id": 2, "image_id": 2})
    two_rows = files.draw(num_images=5)
    assert two_rows.shape[0] > 1.5 * one_row.shape[0]
    assert two_rows.shape[1] == one_row.shape[1]


def test_a_small_picture_is_enlarged(files):
    assert files.draw(num_images=1).shape[1] > 4 * WIDTH


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_images": 0}, "num_images must be at least 1, not 0"),
        ({"score_threshold": 50}, "score_threshold must be from 0 to 1, as the scores are, not 50"),
    ],
)
def test_a_wrong_argument_is_named(files, wrong, message):
    with pytest.raises(ValueError, match=message):
        files.draw(**wrong)
    assert not files.out.exists()


def test_a_picture_may_be_a_jpeg(files):
    files.out = files.folder / "sheet.jpg"
    files.draw()
    assert Image.open(files.out).format == "JPEG"


def test_another_kind_of_file_is_refused(files):
    files.out = files.folder / "sheet.gif"
    with pytest.raises(ValueError, match=r"sheet\.gif: expected .* ending in \.png or \.jpg"):
        files.draw()


def test_a_missing_picture_is_named(files):
    (files.folder / "3.png").unlink()
    with pytest.raises(PictureError, match=r"3\.png: it cannot be read"):
        files.draw()
    assert not files.out.exists()


def test_a_picture_of_another_size_is_named(files):
    Image.new("RGB", (HEIGHT, WIDTH)).save(files.folder / "3.png")
    with pytest.raises(PictureError, match=r"3\.png: the picture has 40×60 pixels, its annotations are for 60×40"):
        files.draw()


def grey_of_16_bits(path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)).save(path)


def to_be_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((HEIGHT, WIDTH)).save(path, "PNG", exif=exif)


@pytest.mark.parametrize("write", [grey_of_16_bits, to_be_turned])
def test_pictures_are_drawn_as_a_training_sees_them(files, write):
    write(files.folder / "1.png")
    drawn = files.draw(num_images=1)
    seen = LoadImage()(dict(img_path=str(files.folder / "1.png")))["img"]
    assert seen.std() > 30
    Image.fromarray(seen[..., ::-1]).save(files.folder / "1.png")
    assert (files.draw(num_images=1) == drawn).all()


@pytest.mark.parametrize("name", ["1.png", "2.png", "sub/../1.png"])
def test_no_picture_of_the_data_set_is_replaced(files, name):
    (files.folder / "sub").mkdir()
    files.out = files.folder / name
    before = files.out.read_bytes()
    with pytest.raises(DestinationError, match=r"\d\.png, from which it would be made; choose another name"):
        files.draw()
    assert files.out.read_bytes() == before


def test_a_file_name_that_is_no_text_is_named(files):
    files.dataset["images"][0]["file_name"] = 7
    with pytest.raises(AnnotationError, match=r"images\[0\].* file_name 7 is no name"):
        files.draw()


def test_annotations_without_an_object_leave_nothing_to_draw(files):
    files.dataset["annotations"], files.results = [], []
    with pytest.raises(AnnotationError, match="there is no object"):
        files.draw()


def test_a_category_may_be_called_by_any_text(files):
    files.dataset["categories"][0]["name"] = "a$b_$"
    files.draw()


@pytest.mark.parametrize(
    "mask", [[[1, 2]], [], 5, [[1e9, 0, 9, 0, 9, 9]], {"size": [HEIGHT, WIDTH], "counts": [0, 60]}]
)
def test_a_true_mask_that_is_none_is_named(files, mask):
    files.dataset["annotations"][0]["segmentation"] = mask
    with pytest.raises(AnnotationError, match=r"annotations\[0\]"):
        files.draw()
    assert not files.out.exists()


def test_annotations_without_masks_or_file_names_are_named(files):
    del files.dataset["annotations"][1]["segmentation"]
    with pytest.raises(AnnotationError, match=r"annotations\[1\] lacks segmentation"):
        files.draw()
    del files.dataset["images"][1]["file_name"]
    with pytest.raises(AnnotationError, match=r"images\[1\] lacks file_name"):
        files.draw()


def test_results_of_other_pictures_are_refused(files):
    files.results = [prediction(77)]
    with pytest.raises(ResultsError, match="image_id 77 is not in the annotation file"):
        files.draw()


@pytest.fixture
def run_tool(monkeypatch):
    def run(*args: object) -> int:
        monkeypatch.setattr("sys.argv", ["ce_mm draw", *map(str, args)])
        return main()

    return run


def test_the_tool_draws_what_the_function_draws(files, run_tool):
    expected = files.draw(num_images=2, score_threshold=0.95)
    files.out.unlink()
    inputs = files.folder / "annotations.json", files.folder, files.folder / "results.json"
    assert run_tool(*inputs, "--out", files.out, "--images", 2, "--score-threshold", 0.95) == 0
    assert (np.asarray(Image.open(files.out).convert("RGB")) == expected).all()


def test_the_config_is_not_replaced(files, run_tool, capsys):
    config = files.folder / "config.py"
    config.write_text("mine = 1")
    inputs = files.folder / "annotations.json", files.folder, files.folder / "results.json"
    assert run_tool(*inputs, "--out", config, "--config", config) == 2
    assert "from which it would be made" in capsys.readouterr().err


def test_missing_results_end_the_tool_with_one_line_and_status_2(files, run_tool, capsys):
    files.draw()
    missing = files.folder / "missing.json"
    assert run_tool(files.folder / "annotations.json", files.folder, missing, "--out", files.out) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {missing}: no such file") and error.count("\n") == 1
