"""What ``import ce_mm`` leaves alone, and what a config with ``ce_mm.training`` has instead."""
import subprocess
import sys
from pathlib import Path

BASE = Path(__file__).resolve().parents[1] / "configs/_base_/ce.py"
STATE = """
from mmengine import hooks
from mmengine._strategy import fsdp
from mmengine.device import get_device
from mmengine.dist import utils
from mmengine.registry import HOOKS
from torch.distributed.fsdp import FullyShardedDataParallel

print("hook", HOOKS.get("CheckpointHook") is hooks.CheckpointHook)
print("launchers", not hasattr(utils._init_dist_pytorch, "__wrapped__") or get_device() != "cpu" and "no need")
print("fsdp", fsdp.FSDP is FullyShardedDataParallel)
print("by its own name", HOOKS.get("SafeCheckpointHook").__module__)
"""


def state(beginning):
    """What is mmengine's own and PyTorch's in a fresh process."""
    done = subprocess.run([sys.executable, "-c", beginning + STATE], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_import_alone_leaves_hooks_launchers_and_fsdp_as_they_were():
    hook, launchers, fsdp, safe = state("import ce_mm")
    assert (hook, fsdp) == ("hook True", "fsdp True")
    assert launchers == "launchers True"
    assert safe == "by its own name ce_mm.hooks"


def test_a_config_asks_for_them(tmp_path):
    config = tmp_path / "own.py"
    config.write_text(f"_base_ = [{str(BASE)!r}]\n")
    hook, launchers, fsdp, _ = state(f"from mmengine.config import Config; Config.fromfile({str(config)!r})")
    assert (hook, fsdp) == ("hook False", "fsdp False")
    assert launchers in ("launchers False", "launchers no need")
