import os
from pathlib import Path

import pytest

from ce_mm.files import DestinationError, check_destination, check_folder, replacing


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "A.json"
    path.write_text("{}")
    (tmp_path / "sub").mkdir()
    return path


@pytest.mark.parametrize("name", ["A.json", "sub/../A.json", "link.json", "hard.json", "linked/A.json"])
def test_an_input_is_no_destination_however_it_is_spelt(name, source):
    folder = source.parent
    (folder / "link.json").symlink_to(source)
    os.link(source, folder / "hard.json")
    (folder / "linked").symlink_to(folder)
    with pytest.raises(DestinationError, match=r"from which it would be made; choose another name"):
        check_destination(folder / name, [folder / "missing.json", source])


def test_a_file_is_replaced_only_where_that_is_wanted(source):
    there = source.with_name("B.json")
    there.touch()
    check_destination(there, [source])
    with pytest.raises(DestinationError, match=r"B\.json: is there already"):
        check_destination(there, [source], replace=False)


@pytest.mark.parametrize(("name", "reason"), [("sub", "is a folder"), ("none/B.json", "none does not exist")])
def test_a_place_that_holds_no_file_is_refused(name, reason, source):
    with pytest.raises(DestinationError, match=reason):
        check_destination(source.parent / name, [source])


def test_a_new_name_beside_the_input_passes(source):
    check_destination(source.with_name("B.json"), [source], replace=False)


def test_two_that_write_one_file_at_once_leave_the_whole_of_one(tmp_path):
    """Threads here; processes of two hosts with one disk may have one id as well."""
    with replacing(tmp_path / "a.json") as first, replacing(tmp_path / "a.json") as second:
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert (tmp_path / "a.json").read_text() == "first"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("name", ["A.json", "A.json/new", "A.json/new/folder", "nowhere"])
def test_a_folder_that_cannot_be_made_is_refused(name, source):
    (source.parent / "nowhere").symlink_to("absent")
    with pytest.raises(DestinationError, match=r"expected a folder to write to, .* is a file"):
        check_folder(source.parent / name, ["report.json"])


def test_a_file_of_a_folder_is_no_input_either(source):
    check_folder(source.parent, ["B.json"], [source])
    check_folder(source.parent / "new/folder", ["A.json"], [source])
    with pytest.raises(DestinationError, match=r"A\.json: is .*A\.json, from which it would be made"):
        check_folder(source.parent, ["B.json", "A.json"], [source])
    with pytest.raises(DestinationError, match=r"sub: is a folder"):
        check_folder(source.parent, ["sub"])


def test_a_folder_in_the_working_folder_may_be_new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_folder(Path("new"), ["A.json"])
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_has_left_goes_with_the_next_one(tmp_path):
    others = [".a.json.mine.lock", ".a.json.mine.tmp", ".b.json.0123abcd.lock", ".b.json.0123abcd.tmp"]
    for name in (".a.json.0123abcd.lock", ".a.json.0123abcd.tmp", *others):
        (tmp_path / name).touch()
    with replacing(tmp_path / "a.json") as unfinished:
        unfinished.touch()
    assert sorted(os.listdir(tmp_path)) == [*others, "a.json"]
