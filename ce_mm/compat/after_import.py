"""Something to be done when a module of another library is there: at once, or as soon as anybody imports it."""
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(name: str, action: Callable[[], object]) -> None:
    """Call ``action`` after the module of this full name has been imported; never, if nobody does."""
    if sys.modules.get(name) is not None:  # None stands for a module that must not be imported
        action()
    else:
        sys.meta_path.insert(0, _Finder(name, action))


class _Finder(MetaPathFinder):
    """Finds one module where others would, and has the action follow its execution, once."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self.name, self.action = name, action

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The others' spec, with the action in its loader."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)  # for the others' turn alone: who asks for a spec may import nothing
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.action()

            spec.loader.exec_module = execute_and_act
        return spec
