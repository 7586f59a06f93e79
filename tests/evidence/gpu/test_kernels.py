"""What compute-sanitizer looks on at launches the kernels that there are."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ONE_KIND = """
import torch
from tools.evidence.gpu import kernels
kernels.LAYERS, kernels.DTYPES, kernels.LAYOUTS = ({},), (torch.float32,), (torch.contiguous_format,)
before = {tuner: len(tuner.configs) for kernel in kernels.TUNED for tuner in kernel.tuners.values()}
kernels.main()
assert before and all(len(tuner.configs) == 1 for tuner in before)
"""


def test_every_kernel_is_launched_in_one_configuration_at_a_time():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", ONE_KIND], cwd=Path(__file__).resolve().parents[3], capture_output=True, text=True,
        check=False, env=os.environ | dict(TRITON_INTERPRET="1", CE_MM_BACKEND="triton"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 kinds of layer" in done.stdout
