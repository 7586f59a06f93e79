import os

import pytest

from ce_mm.files import DestinationError, check_destination, make_folder


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


def test_a_folder_is_made_with_those_above_it(tmp_path):
    make_folder(tmp_path / "a" / "b", ["page.md"])
    make_folder(tmp_path / "a" / "b", ["page.md"])
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_is_refused_where_a_file_would_replace_an_input(source):
    with pytest.raises(DestinationError, match=r"A\.json, from which it would be made"):
        make_folder(source.parent, ["A.md", "A.json"], [source])


def test_a_file_is_no_folder(source):
    with pytest.raises(DestinationError, match=r"A\.json: is a file; expected a folder"):
        make_folder(source, [])
