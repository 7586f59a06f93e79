"""SyncCE: several processes, each with its part of a batch, compute what one process computes of all of it."""
import functools
import json

import pytest
import torch
import torch.multiprocessing as mp
from distributed_checks import run_sync_checks, sync_checks

from ce_mm.layers import CENorm


@pytest.fixture(scope="module")
def found_by(tmp_path_factory):
    """Of so many processes, which are started once, the name of every check to what failed, up to the first failure."""

    @functools.cache
    def run(world):
        folder = tmp_path_factory.mktemp("checks")
        mp.spawn(run_sync_checks, args=(world, folder), nprocs=world)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]

    return run


@pytest.mark.parametrize(("world", "name"), [(world, name) for world in (2, 4) for name in sync_checks(world)])
def test_every_process_has_its_part_of_what_one_would_compute(found_by, world, name):
    for rank, found in enumerate(found_by(world)):
        failure = found.get(name, "not tried after the failure of another")
        assert not failure, f"rank {rank}: {failure}"


def test_without_other_processes_the_layer_is_as_without_sync():
    torch.manual_seed(0)
    layer = CENorm(16, sync=True)
    x = torch.randn(2, 16, 4, 4)
    twin = CENorm(16)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), twin(x))


def test_the_base_norm_alone_is_not_synchronised_by_ce():
    with pytest.raises(ValueError, match=r"sync must be False without branches.*SyncBN.*got True"):
        CENorm(16, branches=(), sync=True)
