"""Which versions of the OpenMMLab packages ce_mm works with, and one clear error where they do not fit."""
import importlib
import re

SUPPORTED = {
    "mmengine": (">=0.10,<1", (0, 10), (1, 0)),
    "mmcv": (">=2.0,<3", (2, 0), (3, 0)),
    "mmdet": (">=3.3,<4", (3, 3), (4, 0)),
    "mmpretrain": (">=1.2,<2", (1, 2), (2, 0)),
}
"""Package -> (the range as text, lowest (major, minor), first (major, minor) that is too new)."""


class MissingRequirementError(ImportError):
    """An OpenMMLab package that is missing, broken or of a version that ce_mm does not work with."""


def require(*names: str) -> None:
    """Import each of the named packages (keys of ``SUPPORTED``) and check its version.

    Raises:
        MissingRequirementError: for the first of them that is missing, fails at import or has another version.
    """
    for name in names:
        text, lowest, too_new = SUPPORTED[name]
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a broken or ill-matched installation may raise anything at import
            missing = isinstance(error, ModuleNotFoundError) and error.name == name
            found = "it is not installed" if missing else f"importing it failed ({type(error).__name__}: {error})"
            raise _unmet(name, text, found) from error
        version = getattr(module, "__version__", None)
        if version is None:  # e.g. a folder of that name in the working directory, imported as a namespace package
            raise _unmet(name, text, f"{list(getattr(module, '__path__', []))} has no __version__")
        if not lowest <= tuple(map(int, re.findall(r"\d+", version)[:2])) < too_new:
            raise _unmet(name, text, f"version {version} is installed")


def _unmet(name: str, expected: str, found: str) -> MissingRequirementError:
    return MissingRequirementError(
        f"ce_mm needs {name}{expected}, but {found}. Install the maintained OpenMMLab packages with "
        'pip install "ce_mm[onedl]" (or the original ones with pip install "ce_mm[openmmlab]"; the original mmengine '
        "also needs setuptools<81).",
        name=name,
    )
