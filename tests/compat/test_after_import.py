"""What is to follow an import follows it, once, whoever asked for the module before."""
import importlib.util
import sys

import pytest

from ce_mm.compat.after_import import after_import


@pytest.fixture
def later(tmp_path, monkeypatch):
    """The name of a module that nobody has imported, and the list of what was done after its import."""
    (tmp_path / "imported_later.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "imported_later", raising=False)
    done = []
    yield "imported_later", done, lambda: done.append(sys.modules["imported_later"].VALUE)
    sys.modules.pop("imported_later", None)


def test_the_action_follows_the_import_and_waits_for_it(later):
    name, done, action = later
    finders = list(sys.meta_path)
    after_import(name, action)
    assert done == []
    importlib.import_module(name)
    assert done == [1]
    importlib.reload(sys.modules[name])
    assert done == [1]
    assert sys.meta_path == finders


def test_of_a_module_that_is_there_already_the_action_is_done_at_once(later):
    name, done, action = later
    importlib.import_module(name)
    after_import(name, action)
    assert done == [1]


def test_who_only_asks_whether_the_module_is_there_does_not_use_the_action_up(later):
    name, done, action = later
    after_import(name, action)
    assert importlib.util.find_spec(name) is not None
    assert done == []
    importlib.import_module(name)
    assert done == [1]


def test_a_module_that_must_not_be_imported_has_nothing_done_for_it(later, monkeypatch):
    name, done, action = later
    monkeypatch.setitem(sys.modules, name, None)
    after_import(name, action)
    assert done == []


def test_a_module_that_is_missing_is_missing_as_ever(later):
    _, done, action = later
    after_import("no_module_of_this_name", action)
    with pytest.raises(ModuleNotFoundError, match="no_module_of_this_name"):
        importlib.import_module("no_module_of_this_name")
    assert done == []
