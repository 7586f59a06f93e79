"""SyncBN as base norm: its statistics are those of all processes, the covariance and s those of each."""
import pytest
import torch.multiprocessing as mp
from distributed_checks import sync_bn_equals_the_joined_batch


@pytest.mark.parametrize(
    ("samples", "implementation"), [((2, 2), "torch"), ((3, 1), "torch"), ((2, 0), "torch"), ((3, 1), "mmcv")], ids=str
)
def test_two_processes_share_the_base_norm_s_statistics_alone(samples, implementation, tmp_path):
    if implementation == "mmcv":
        pytest.importorskip("mmcv", exc_type=ImportError)
    arguments = samples, implementation, tmp_path / "store"
    mp.spawn(sync_bn_equals_the_joined_batch, args=arguments, nprocs=len(samples))
