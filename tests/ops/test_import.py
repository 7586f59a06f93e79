import subprocess
import sys


def test_ops_need_torch_alone():
    code = """
import sys
for name in ("mmengine", "mmcv", "mmdet", "mmpretrain", "torchvision", "pycocotools", "matplotlib", "triton"):
    sys.modules[name] = None
import ce_mm.ops
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
