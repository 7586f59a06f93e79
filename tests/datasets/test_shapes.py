"""The shapes data set: a pure function of its arguments, consistent with itself, and never half there."""

import hashlib
import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ce_mm.commands.shapes import main
from ce_mm.datasets import shapes
from ce_mm.datasets.shapes import CATEGORIES, make_shapes

# Of all that TINY makes in format 1: pixels and annotations.
DIGEST = "9cde8c0d891e86d74f75d5fe264a19604450431a86008a15d777079a913cb4a1"
TINY = {"num_train": 2, "num_val": 2, "size": (96, 96), "num_crops": 6}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("made") / "shapes", num_train=60, num_val=60, num_crops=60)


@pytest.fixture(scope="module")
def val(root) -> COCO:
    return COCO(root / "annotations" / "val.json")


def test_the_same_seed_gives_the_same_files(tmp_path):
    make_shapes(tmp_path / "a", **TINY, seed=3)
    make_shapes(tmp_path / "b", **TINY, seed=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_seed_gives_other_pictures(tmp_path):
    make_shapes(tmp_path / "a", **TINY, seed=3)
    make_shapes(tmp_path / "b", **TINY, seed=4)
    for file in ("train/000001.png", "val/000001.png", "crops/train/ring/000003.png", "crops/val/ring/000003.png"):
        assert (pixels(tmp_path / "a" / file) != pixels(tmp_path / "b" / file)).any()


def test_a_picture_does_not_depend_on_how_many_others_there_are(tmp_path, root):
    few = make_shapes(tmp_path / "few", num_train=2, num_val=3, num_crops=6)
    for file in ("train/000002.png", "val/000003.png", "crops/train/cross/000002.png"):
        assert (pixels(few / file) == pixels(root / file)).all()
    few_val, all_val = (json.loads((made / "annotations" / "val.json").read_text()) for made in (few, root))
    assert few_val["annotations"] == all_val["annotations"][: len(few_val["annotations"])]


def test_train_and_val_differ(root):
    for split in ("", "crops/"):
        first = next((root / split / "train").rglob("000001.png"))
        assert (pixels(first) != pixels(next((root / split / "val").rglob("000001.png")))).any()


def test_pictures_and_annotations_are_those_of_the_format_version(tmp_path):
    """If this fails after a change to the drawing, folders made before it must not be reused: raise FORMAT_VERSION."""
    made = make_shapes(tmp_path / "shapes", **TINY)
    digest = hashlib.sha256()
    for path in sorted(made.rglob("*.png")):
        digest.update(pixels(path).tobytes())
    for split in ("train", "val"):
        document = json.loads((made / "annotations" / f"{split}.json").read_text())
        digest.update(json.dumps(document, sort_keys=True).encode())
    assert (shapes.FORMAT_VERSION, digest.hexdigest()) == (1, DIGEST)


def test_annotations_name_the_pictures_that_are_there(root, val):
    assert {image["file_name"] for image in val.imgs.values()} == {path.name for path in (root / "val").iterdir()}
    assert len(val.imgs) == 60
    for image in val.imgs.values():
        assert pixels(root / "val" / image["file_name"]).shape == (image["height"], image["width"], 3) == (160, 192, 3)
    assert tuple(category["name"] for category in val.dataset["categories"]) == CATEGORIES


def test_boxes_and_areas_are_those_of_the_masks(val):
    for entry in val.anns.values():
        mask = val.annToMask(entry)
        x, y, width, height = entry["bbox"]
        outside = mask.copy()
        outside[y : y + height, x : x + width] = 0
        box = mask[y : y + height, x : x + width]
        assert not outside.any()
        assert box[0].any() and box[-1].any() and box[:, 0].any() and box[:, -1].any()
        assert box.shape == (height, width)
        assert entry["area"] == mask.sum()
        assert entry["iscrowd"] == 0


def test_masks_of_a_picture_do_not_overlap(val):
    for image_id in val.imgs:
        assert sum(val.annToMask(entry).astype(int) for entry in val.imgToAnns[image_id]).max() == 1


def test_a_mask_covers_pixels_of_one_colour_and_its_surroundings_have_another(root, val):
    for image_id, image in list(val.imgs.items())[:20]:
        picture = pixels(root / "val" / image["file_name"]).astype(float)
        free = sum(val.annToMask(entry) for entry in val.imgToAnns[image_id]) == 0
        for entry in val.imgToAnns[image_id]:
            inside = picture[val.annToMask(entry) == 1]
            # The noise goes to 8 on either side; pixels on the outline are blends.
            assert np.median(np.abs(inside - np.median(inside, axis=0)).max(axis=1)) <= 9
            assert np.abs(np.median(inside, axis=0) - np.median(picture[free], axis=0)).max() > 20


def test_each_picture_has_one_to_six_objects(val):
    counts = Counter(len(val.imgToAnns[image_id]) for image_id in val.imgs)
    assert min(counts) == 1 and max(counts) <= 6
    assert len(counts) >= 4


def test_all_categories_are_about_as_frequent(root):
    document = json.loads((root / "annotations" / "train.json").read_text())
    counts = Counter(entry["category_id"] for entry in document["annotations"])
    assert set(counts) == set(range(1, 7))
    assert max(counts.values()) < 2.5 * min(counts.values())


def test_there_are_small_medium_and_large_objects(val):
    areas = np.array([entry["area"] for entry in val.anns.values()])
    shares = [np.mean(areas < 32**2), np.mean((areas > 32**2) & (areas < 96**2)), np.mean(areas > 96**2)]
    assert shares[0] > 0.1 and shares[1] > 0.3 and shares[2] > 0.02


def test_some_objects_are_partly_covered_but_none_nearly_hidden(monkeypatch):
    visible, full = [], []
    monkeypatch.setattr(shapes, "_paint", lambda canvas, sprite, colour: full.append(int((sprite > 0.5).sum())))
    for index in range(30):
        _, objects = shapes._draw_scene(shapes._random_stream(0, "val", index), 192, 160)
        visible += [int(mask.sum()) for _, mask in objects]
    shares = np.array(visible) / np.array(full)
    assert 0.4 <= shares.min() < 0.8
    assert np.mean(shares < 1) > 0.1


def test_crops_are_dealt_evenly_to_folders_that_number_like_the_categories(root):
    for split, number in (("train", 10), ("val", 2)):
        folders = sorted((root / "crops" / split).iterdir())
        assert tuple(folder.name for folder in folders) == CATEGORIES
        assert [len(list(folder.iterdir())) for folder in folders] == [number] * 6
        assert all(pixels(path).shape == (64, 64, 3) for folder in folders for path in folder.iterdir())


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("size", [13, 40.5, 120])
@pytest.mark.parametrize("angle", [0, 0.4, 2.9])
def test_a_shape_has_the_area_asked_for_and_is_drawn_whole(category, size, angle):
    coverage = shapes._coverage(category, size, angle, np.array([0.3, -0.2]))
    assert np.sum(coverage) == pytest.approx(size**2, rel=0.06 if size == 13 else 0.02)
    assert max(coverage.shape) < 2 * 0.9 * size + 3


def test_shapes_of_one_size_cover_different_pixels():
    masks = {}
    for category in CATEGORIES:
        coverage = shapes._coverage(category, 40, 0.0, np.zeros(2))
        mask = np.zeros((90, 90), bool)
        top, left = (90 - coverage.shape[0]) // 2, (90 - coverage.shape[1]) // 2
        mask[top : top + coverage.shape[0], left : left + coverage.shape[1]] = coverage > 0.5
        masks[category] = mask
    for a in CATEGORIES:
        for b in CATEGORIES:
            overlap = np.sum(masks[a] & masks[b]) / np.sum(masks[a] | masks[b])
            assert (overlap < 0.85) == (a != b), (a, b)


def test_a_folder_made_by_the_same_recipe_is_reused(tmp_path, monkeypatch):
    made = make_shapes(tmp_path / "shapes", **TINY)
    monkeypatch.setattr(shapes, "_fill", lambda *args: pytest.fail("made again"))
    assert make_shapes(tmp_path / "shapes", **TINY) == made


def test_a_folder_made_by_another_recipe_is_left_alone(tmp_path):
    made = make_shapes(tmp_path / "shapes", **TINY)
    before = contents(made)
    with pytest.raises(FileExistsError, match=r"shapes of another recipe \(.*seed 0.*\), so it is left alone"):
        make_shapes(made, **TINY, seed=1)
    assert contents(made) == before
    assert list(tmp_path.iterdir()) == [made]


def test_what_a_user_puts_into_the_folder_stays(tmp_path):
    made = make_shapes(tmp_path / "shapes", **TINY)
    (made / "notes.txt").write_text("mine")
    assert make_shapes(made, **TINY) == made
    assert (made / "notes.txt").read_text() == "mine"


def test_a_leftover_with_something_else_in_it_is_left_alone(tmp_path):
    made = make_shapes(tmp_path / "shapes", **TINY)
    made.rename(tmp_path / ".shapes.making")
    (tmp_path / ".shapes.making/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt was not made by"):
        make_shapes(made, **TINY)
    assert (tmp_path / ".shapes.making/notes.txt").read_text() == "mine"


def test_an_empty_folder_and_missing_parents_are_used(tmp_path):
    (tmp_path / "empty").mkdir()
    make_shapes(tmp_path / "empty", **TINY)
    make_shapes(tmp_path / "new" / "deep" / "shapes", **TINY)
    assert contents(tmp_path / "empty") == contents(tmp_path / "new" / "deep" / "shapes")


@pytest.mark.parametrize("foreign", [{}, {"maker": "someone else"}, [1]])
def test_a_folder_that_was_not_made_here_is_left_alone(tmp_path, foreign):
    (tmp_path / "thesis.txt").write_text("the only copy")
    if foreign:
        (tmp_path / "recipe.json").write_text(json.dumps(foreign))
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds no recipe\.json of .*name another folder"):
        make_shapes(tmp_path, **TINY)
    assert contents(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path):
    (tmp_path / "shapes").write_text("a file")
    with pytest.raises(FileExistsError, match="name another folder"):
        make_shapes(tmp_path / "shapes", **TINY)
    assert (tmp_path / "shapes").read_text() == "a file"


def interrupt_after(monkeypatch, saves: int):
    save, calls = shapes._save, []

    def interrupted(picture, path):
        calls.append(path)
        if len(calls) > saves:
            raise KeyboardInterrupt
        save(picture, path)

    monkeypatch.setattr(shapes, "_save", interrupted)


@pytest.mark.parametrize("saves", [0, 3, 9])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, saves):
    interrupt_after(monkeypatch, saves)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "shapes", **TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, monkeypatch, seed):
    with monkeypatch.context() as killed:
        interrupt_after(killed, 3)
        killed.setattr(shapes, "_remove", lambda leftover: None)
        with pytest.raises(KeyboardInterrupt):
            make_shapes(tmp_path / "shapes", **TINY)
    assert [path.name for path in tmp_path.iterdir()] == [".shapes.making"]
    made = make_shapes(tmp_path / "shapes", **TINY, seed=seed)
    assert list(tmp_path.iterdir()) == [made]


def test_leftovers_are_removed_also_when_the_folder_is_reused(tmp_path):
    made = make_shapes(tmp_path / "shapes", **TINY)
    shutil.copytree(made, tmp_path / ".shapes.making")
    make_shapes(tmp_path / "shapes", **TINY)
    assert list(tmp_path.iterdir()) == [made]


def test_a_foreign_folder_with_the_name_of_a_leftover_is_left_alone(tmp_path):
    (tmp_path / ".shapes.making").mkdir()
    (tmp_path / ".shapes.making" / "thesis.txt").write_text("the only copy")
    with pytest.raises(FileExistsError, match="move it away"):
        make_shapes(tmp_path / "shapes", **TINY)
    assert contents(tmp_path) == {".shapes.making/thesis.txt": b"the only copy"}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_train": 0}, "num_train must be a whole number of at least 1, not 0"),
        ({"num_val": -2}, "num_val must be a whole number of at least 1, not -2"),
        ({"num_train": 2.5}, "num_train must be a whole number of at least 1, not 2.5"),
        ({"num_crops": 5}, "num_crops must be a whole number of at least 6, not 5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"size": 192}, r"size must be a pair \(width, height\), not 192"),
        ({"size": (95, 160)}, "the width must be a whole number of at least 96 pixels, not 95"),
        ({"size": (192, 1.5)}, "the height must be a whole number of at least 96 pixels, not 1.5"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        make_shapes(tmp_path / "shapes", **TINY | wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_tool(monkeypatch):
    def run(*args: object) -> int:
        monkeypatch.setattr("sys.argv", ["ce_mm shapes", *map(str, args)])
        return main()

    return run


def test_the_tool_makes_the_folder(tmp_path, run_tool, capsys):
    assert run_tool(tmp_path / "tool", "--train", 2, "--val", 1, "--crops", 6, "--seed", 5) == 0
    assert capsys.readouterr().out == f"The shapes are in {tmp_path / 'tool'}\n"
    make_shapes(tmp_path / "function", 2, 1, num_crops=6, seed=5)
    assert contents(tmp_path / "tool") == contents(tmp_path / "function")


def test_a_bad_argument_of_the_tool_ends_with_one_line_and_status_2(tmp_path, run_tool, capsys):
    assert run_tool(tmp_path / "tool", "--train", 0) == 2
    assert capsys.readouterr().err == "error: num_train must be a whole number of at least 1, not 0\n"
    assert list(tmp_path.iterdir()) == []


def interrupt(*args):
    """What Ctrl-C does, also where the tests were started in the background, which leaves that signal ignored."""
    signal.default_int_handler(signal.SIGINT, None)


def test_an_interrupted_tool_leaves_nothing_and_ends_with_status_130(tmp_path, run_tool, monkeypatch):
    monkeypatch.setattr(shapes, "_draw_crop", interrupt)
    assert run_tool(tmp_path / "tool", "--train", 1, "--val", 1, "--crops", 6) == 130
    assert list(tmp_path.iterdir()) == []
