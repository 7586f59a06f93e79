"""Operators and layers need torch alone: in processes where OpenMMLab cannot be imported, or where nobody asks for it.

All tests of both pass there too: ``python -m pytest -p without_openmmlab tests/ops tests/layers``.
"""
import re
import subprocess
import sys
from pathlib import Path

from without_openmmlab import LIBRARIES

ROOT = Path(__file__).resolve().parents[1]


def run(code, blocked=LIBRARIES):
    """What Python prints for ``code`` where these modules cannot be imported, and warnings are errors."""
    code = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n{code}"
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def block_of(page, line):
    """The one block of python on a page that has this line."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if line in block)
    return block


STEP = """
import torch
from ce_mm.layers import CENorm
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
before = [value.detach().clone() for value in model.parameters()]
model(pictures).square().mean().backward()
optimizer.step()
assert any(isinstance(module, CENorm) for module in model.modules())
for old, new in zip(before, model.parameters(), strict=True):
    assert new.isfinite().all() and not torch.equal(old, new)
"""


def test_readme_s_model_of_torchvision_s_trains_a_step():
    block = block_of("README.md", "from ce_mm.layers import equalize")
    assert 'weights="DEFAULT"' in block
    block = block.replace('weights="DEFAULT"', "")  # they would be fetched
    printed = run(f"import torch\n{block}\npictures = torch.randn(2, 3, 64, 64)\n{STEP}")
    assert len(printed.splitlines()) == 14


def test_the_block_of_an_own_network_trains_a_step():
    block = block_of("docs/own_network.md", "class Block(nn.Module)")
    run(f"import torch\n{block}\nmodel, pictures = Block(16), torch.randn(2, 16, 8, 8)\n{STEP}")


def test_nor_is_one_imported_that_is_there():
    run("import torch, ce_mm.ops, ce_mm.layers; assert not sys.modules.keys() & {'triton', 'numba', 'llvmlite'}", ())


def test_ops_and_layers_need_no_other_library_either():
    others = ("torchvision", "pycocotools", "matplotlib", "triton", "PIL", "numba", "llvmlite")
    run("import ce_mm.ops, ce_mm.layers", LIBRARIES + others)


def test_ops_and_layers_import_no_library_that_is_there():
    run(f"import ce_mm.ops, ce_mm.layers\nassert not sys.modules.keys() & {set(LIBRARIES)}", blocked=())


def test_names_wait_for_mmengine_s_registry_and_what_they_stand_for_until_it_is_asked_for():
    run(f"""
import warnings
warnings.simplefilter("ignore")  # of the libraries' own
import ce_mm.layers
from mmengine.registry import MODELS
names = "CE", "SN", "CEResNet", "CEMobileNetV2", "CEShuffleNetV2", "CEVGG"
assert all(map(MODELS.get, names))
assert not sys.modules.keys() & {set(LIBRARIES) - {"mmengine"}}
assert MODELS.get("CE") is ce_mm.layers.CENorm and MODELS.get("SN") is ce_mm.layers.SwitchableNorm
""", blocked=())  # fmt: skip


def test_their_tests_are_all_found_and_some_quick_ones_pass_without_openmmlab():
    command = [sys.executable, "-m", "pytest", "-p", "without_openmmlab", "-p", "no:cacheprovider", "-q"]
    quick = ["-k", "test_multiply_adds or test_onlookers", "tests/ops", "tests/layers"]
    result = subprocess.run([*command, *quick], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    passed, skipped, others = re.search(r"(\d+) passed, (\d+) skipped, (\d+) deselected", result.stdout).groups()
    assert int(passed) > 10
    assert int(skipped) == 1  # what is about OpenMMLab
    assert int(others) > 1000
