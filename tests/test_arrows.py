"""The order of the package: a storey imports from those below it, nothing goes round in a circle.

An arrow is an import statement, at the top of a module or inside a function. What is imported by a name in a string
(``registration.py``, the backends) is none: that is what such names are for.
"""
import ast
import importlib.util
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: From the ground up: parts of the package that do not import each other, but may import all below. A module belongs to
#: the part with the longest name that its own begins with; the last storey is the package's own ``__init__.py``.
STOREYS = [
    ["version", "files", "choices", "compat.requirements", "compat.after_import"],
    ["ops"],
    ["layers"],
    ["backbones"],
    ["checkpoints"],
    ["compat", "transforms", "evaluation"],
    ["launching"],
    ["evaluation.classes", "analysis"],
    ["hooks", "export", "prediction", "datasets"],
    ["registration", "training", "commands", "__main__"],
    [""],
]
PARTS = {part: height for height, storey in enumerate(STOREYS) for part in storey}
#: What the two lowest storeys of tensors may import beside the package and the standard library.
LIBRARIES = {"torch", "numpy", "triton", "numba", "llvmlite"}


def name_of(path):
    """The full name of a module of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path.read_text(encoding="utf-8") for path in (ROOT / "ce_mm").rglob("*.py")}
#: Names of packages, which end with their own "__init__.py".
PACKAGES = {name_of(path) for path in (ROOT / "ce_mm").rglob("__init__.py")}


def imports(name, source):
    """The full names of all modules that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if name in PACKAGES else name.rpartition(".")[0]
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inside = f"{module}.{alias.name}"
                found.add(inside if inside in SOURCES else module)
    return found


def part_of(name):
    """The part of the package that a module belongs to."""
    inside = name.partition(".")[2]
    fitting = [part for part in PARTS if inside == part or (part and inside.startswith(f"{part}."))]
    assert fitting, f"{name} has no storey: give its part one in STOREYS, or a place in another"
    return max(fitting, key=len)


def wrong_arrows(name, source):
    """What a module imports from beside or above it."""
    part = part_of(name)
    ours = {target for target in imports(name, source) if target.partition(".")[0] == "ce_mm"}
    return {target for target in ours if part_of(target) != part and PARTS[part_of(target)] >= PARTS[part]}


def test_every_module_imports_only_from_the_storeys_below_its_own():
    wrong = {name: wrong_arrows(name, source) for name, source in SOURCES.items()}
    assert not {name: targets for name, targets in wrong.items() if targets}


def test_ops_and_layers_import_torch_and_the_standard_library_alone():
    allowed = sys.stdlib_module_names | LIBRARIES | {"ce_mm"}
    for name in SOURCES:
        if part_of(name) in ("ops", "layers"):
            foreign = {target.partition(".")[0] for target in imports(name, SOURCES[name])} - allowed
            assert not foreign, f"{name} imports {foreign}"


def test_nothing_of_the_package_imports_its_tools_and_tests():
    for name, source in SOURCES.items():
        assert not {target.partition(".")[0] for target in imports(name, source)} & {"tools", "tests"}, name


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter({name: imports(name, source) for name, source in SOURCES.items()}).prepare()


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ce_mm.ops.moments", "from ce_mm.layers import CENorm"),
        ("ce_mm.ops.moments", "def later():\n    import ce_mm.compat.safe_load as safe"),
        ("ce_mm.layers.fold", "from ce_mm import ops, backbones"),
        ("ce_mm.layers", "from .. import backbones"),
        ("ce_mm.checkpoints.convert", "from ..launching.model import fit"),
        ("ce_mm.hooks.non_finite", "from ce_mm.export import export"),
        ("ce_mm.files", "from ce_mm import __version__"),
        ("ce_mm.evaluation.coco", "from ce_mm.evaluation.classes import read_classes"),
    ],
)
def test_a_wrong_arrow_is_found(name, source):
    assert len(wrong_arrows(name, source)) == 1


def test_a_module_named_in_a_string_is_no_arrow():
    assert not imports("ce_mm.registration", "import_module('ce_mm.hooks')")
