"""Pictures by name, folder and pattern; results that meet neither each other nor the pictures."""
import json
from pathlib import Path

import pytest

from ce_mm.prediction.finding import find_pictures, place

OUT = Path("out")


@pytest.fixture(autouse=True)
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.jpg", "a/2.PNG", "a/notes.txt", "a/b/1.jpg", "a/.trash/3.jpg", "a/._1.jpg", "c/[1].webp", "d/x"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("empty").mkdir()


def found(*wanted, out=OUT):
    return [path.as_posix() for path in find_pictures(wanted, out)]


def placed(*pictures, out=OUT):
    return [result.as_posix() for result in place(list(map(Path, pictures)), out)]


def test_a_folder_stands_for_the_pictures_in_it_and_in_its_folders_but_not_for_hidden_ones():
    assert found("a") == ["a/1.jpg", "a/2.PNG", "a/b/1.jpg"]


def test_a_file_is_taken_whatever_it_is_called():
    assert found("d/x", "c/[1].webp", "a/notes.txt") == ["d/x", "c/[1].webp", "a/notes.txt"]


def test_a_pattern_is_expanded_as_the_shell_would():
    assert found("a/*.jpg") == ["a/1.jpg"]
    assert found("a/**/*.jpg") == ["a/1.jpg", "a/b/1.jpg"]
    assert found("?/b") == ["a/b/1.jpg"]


def test_a_picture_that_is_wanted_twice_is_taken_once():
    assert found("a/b", "a/b/../b/1.jpg", str(Path("a/b/1.jpg").resolve()), "a/*/1.jpg") == ["a/b/1.jpg"]


def test_results_of_another_time_are_no_pictures():
    Path("a/out").mkdir()
    Path("a/out/1.jpg").touch()
    assert "a/out/1.jpg" in found("a")
    Path("link").symlink_to("a/out")
    for wanted in ("a", "a/**/*.jpg", "[a]", str(Path("a").resolve())):
        for out in ("a/out", "link"):
            assert not any("/out/" in path for path in found(wanted, out=Path(out)))


def test_pictures_below_the_folder_for_results_are_pictures_all_the_same():
    assert found("a/b", "a/b/*", out=Path(".")) == ["a/b/1.jpg"]
    assert found("a/b", out=Path("a/b")) == ["a/b/1.jpg"]


@pytest.mark.parametrize("absent", ["absent.jpg", "absent/", "a/*.gif"])
def test_what_is_not_there_is_named(absent):
    with pytest.raises(ValueError, match="there is no such picture or folder") as refusal:
        found("a", absent)
    assert str(refusal.value).startswith(absent)


def test_a_folder_without_pictures_is_named():
    with pytest.raises(ValueError, match=r"empty: there is no picture in this folder; expected .*\.jpg"):
        found("a", "empty")


def test_nothing_is_not_enough():
    with pytest.raises(ValueError, match="no picture is given"):
        found()


def test_pictures_of_one_folder_go_side_by_side():
    assert placed("a/1.jpg", "a/2.PNG") == ["out/1", "out/2"]


def test_pictures_of_one_name_keep_their_folders_apart():
    assert placed("a/1.jpg", "a/b/1.jpg") == ["out/1", "out/b/1"]
    assert placed("a/b/1.jpg", "c/1.jpg") == ["out/a/b/1", "out/c/1"]


def test_where_pictures_differ_by_their_ending_alone_all_keep_it():
    assert placed("a/1.jpg", "a/1.png", "a/1.jpg.webp", "a/b/2.jpg") == [
        "out/1.jpg", "out/1.png", "out/1.jpg.webp", "out/b/2.jpg",
    ]  # fmt: skip


def test_results_never_lie_among_the_pictures():
    with pytest.raises(ValueError, match=r"a: the results would lie among the pictures in .*a; choose another folder"):
        placed("a/1.jpg", "a/2.PNG", out=Path("c/../a"))
    assert placed("a/1.jpg", out=Path("a/out")) == ["a/out/1"]


def test_a_link_to_the_folder_of_the_pictures_is_that_folder():
    Path("link").symlink_to("a")
    with pytest.raises(ValueError, match="link: the results would lie among the pictures"):
        placed("a/1.jpg", out=Path("link"))


def test_no_result_of_one_picture_lies_among_others():
    Path("c/link").symlink_to("../a/b")
    for out in ("a/b", "c/../a/b", "c/link"):
        with pytest.raises(ValueError, match=f"{out}: the results would lie among the pictures in {out}; choose"):
            placed("a/1.jpg", "a/b/1.jpg", out=Path(out))


RESULT = dict(file_name="1.jpg", width=2, height=1, score_threshold=0.3, objects=[])


def test_no_picture_without_the_numbers_of_a_result_is_replaced():
    with pytest.raises(ValueError, match=r"a/b: a result would replace a/b/1\.jpg, which is no result: 1\.json beside"):
        place(find_pictures(["a"], Path("a/b")), Path("a/b"))


@pytest.mark.parametrize("numbers", ["", "[]", "[" * 9**5, json.dumps(RESULT | dict(shapes=[]))], ids=range(4))
def test_no_other_numbers_are_replaced(numbers):
    Path("out").mkdir()
    Path("out/1.json").write_text(numbers)
    with pytest.raises(ValueError, match=r"out: a result would replace out/1\.json, which is no result"):
        placed("a/1.jpg")


def test_an_older_result_is_replaced():
    Path("a/b/1.json").write_text(json.dumps(RESULT))
    assert place(find_pictures(["a"], Path("a/b")), Path("a/b")) == [Path("a/b/1"), Path("a/b/2")]


@pytest.mark.parametrize("out", ["d/x", "d/x/new/folder"])
def test_a_file_is_no_folder_for_results(out):
    with pytest.raises(ValueError, match=f"{out}: expected a folder to write to, .* but d/x is a file"):
        placed("a/1.jpg", out=Path(out))
