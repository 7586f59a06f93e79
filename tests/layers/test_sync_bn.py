"""SyncBN as base norm: its statistics are those of all processes, the covariance and s those of each."""
import pytest
import torch.multiprocessing as mp
from distributed_checks import sync_bn_equals_the_joined_batch


@pytest.mark.parametrize("samples", [(2, 2), (3, 1), (2, 0)], ids=str)
def test_two_processes_share_the_base_norm_s_statistics_alone(samples, tmp_path):
    mp.spawn(sync_bn_equals_the_joined_batch, args=(samples, tmp_path / "store"), nprocs=len(samples))
