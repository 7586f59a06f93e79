"""A plugin for pytest: a process where none of the OpenMMLab libraries can be imported.

    python -m pytest -p without_openmmlab tests/ops tests/layers
"""
import sys

LIBRARIES = ("mmengine", "mmcv", "mmdet", "mmpretrain")


def pytest_load_initial_conftests() -> None:
    for library in LIBRARIES:
        sys.modules[library] = None  # which the import system takes for a module that must not be imported
