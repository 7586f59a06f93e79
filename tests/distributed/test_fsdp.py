"""CE under FSDP: PyTorch's first one, as mmengine's FlexibleRunner runs it, and ``fully_shard``."""
import os
import shutil

import pytest
import torch
import torch.distributed as dist
from mmengine.dataset import DefaultSampler
from mmengine.runner import FlexibleRunner
from ranks import on_ranks
from tiny_network import TinyNetwork, buffers, gradients, mean, samples
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.data import DataLoader

import ce_mm.training  # noqa: F401  (for launchers without a GPU, and for FSDP that resumes)
from ce_mm.checkpoints.reading import read_checkpoint
from ce_mm.layers import CENorm

SGD = dict(lr=0.1, momentum=0.9)
STEPS = 3  # of an epoch
PER_RANK = 2


def data():
    """All samples of an epoch, of which the processes take turns."""
    batch = samples(STEPS * PER_RANK * dist.get_world_size(), seed=1)
    return [dict(x=x, weight=weight) for x, weight in zip(*batch.values(), strict=True)]


def stacked(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def parts(step):
    """The batches of all processes in one step of the epoch."""
    world = dist.get_world_size()
    together = data()[step * PER_RANK * world : (step + 1) * PER_RANK * world]
    return [stacked(together[rank::world]) for rank in range(world)]


def by_hand(rank, epochs=1):
    """A network trained on the means of the processes' gradients; its buffers are those of one process."""
    net = TinyNetwork()
    optimizer = torch.optim.SGD(net.parameters(), **SGD)
    for step in list(range(STEPS)) * epochs:
        for p, g in zip(net.parameters(), mean([gradients(net, part) for part in parts(step)]), strict=True):
            p.grad = g
        net(**parts(step)[rank])
        optimizer.step()
    return net


def train_with_mmengine(folder, epochs, resume=False, saved="full"):
    runner = FlexibleRunner(
        TinyNetwork(),
        work_dir=folder,
        strategy=dict(type="FSDPStrategy", state_dict_cfg=saved),
        train_dataloader=DataLoader(
            data(), batch_size=PER_RANK, sampler=DefaultSampler(data(), shuffle=False), collate_fn=stacked
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type="SGD", **SGD)),
        custom_hooks=[dict(type="NonFiniteHook")],
        launcher="pytorch",
        experiment_name=os.path.basename(folder),  # by the second, two runs would share the first one's log files
        resume=resume,
    )
    runner.train()
    dist.barrier()
    return runner.model


def of_all(model):
    with FullyShardedDataParallel.summon_full_params(model):
        return [p.clone() for p in model.parameters()]


def mmengine_trains_saves_and_resumes(rank, folder):
    model = train_with_mmengine(folder, epochs=1)
    expected = by_hand(rank)
    torch.testing.assert_close(of_all(model), list(expected.parameters()))
    torch.testing.assert_close(buffers(model.module), buffers(expected))

    saved = read_checkpoint(f"{folder}/epoch_1.pth")["state_dict"]
    torch.testing.assert_close(saved, dict(by_hand(rank=0).state_dict()))

    resumed = train_with_mmengine(folder, epochs=2, resume=True)
    torch.testing.assert_close(of_all(resumed), list(by_hand(rank, epochs=2).parameters()))


def a_moved_folder_resumes(rank, folder):
    train_with_mmengine(f"{folder}/here", epochs=1)
    if rank == 0:
        shutil.move(f"{folder}/here", f"{folder}/there")
    dist.barrier()
    resumed = train_with_mmengine(f"{folder}/there", epochs=2, resume=True)
    torch.testing.assert_close(of_all(resumed), list(by_hand(rank, epochs=2).parameters()))


def the_parts_of_all_are_saved_together(rank, folder):
    train_with_mmengine(folder, epochs=1, saved="local")
    assert sorted(os.listdir(f"{folder}/epoch_1.pth")) == ["rank0.pth", "rank1.pth"]
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def fully_shard_trains_saves_and_loads(rank):
    net = TinyNetwork()
    for layer in net.body:
        fully_shard(layer, mesh=(mesh := dist.init_device_mesh("cpu", (dist.get_world_size(),))))
    fully_shard(net, mesh=mesh)
    assert net.body[1].mix.to_local().numel() == (1 if rank == 0 else 0)
    optimizer = torch.optim.SGD(net.parameters(), **SGD)
    for step in range(STEPS):
        net(**parts(step)[rank])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = by_hand(rank)
    full = StateDictOptions(full_state_dict=True)
    state = get_model_state_dict(net, options=full)
    torch.testing.assert_close(state, expected.state_dict())

    for p in net.parameters():
        p.data.zero_()
    set_model_state_dict(net, dict(state), options=full)  # which puts the shards into the dict
    torch.testing.assert_close(get_model_state_dict(net, options=full), state)


def first_fsdp(layer):
    # Unless told otherwise, mixed precision shards every batch norm by itself, also one whose weights a CENorm reads.
    policy = MixedPrecision(param_dtype=torch.bfloat16, _module_classes_to_ignore=())
    return FullyShardedDataParallel(
        layer, device_id=torch.device("cpu"), use_orig_params=True, mixed_precision=policy,
        auto_wrap_policy=ModuleWrapPolicy([CENorm]),
    )  # fmt: skip


def second_fsdp(layer):
    return fully_shard(
        layer,
        mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)),
        mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16),
    )


def coefficients_stay_float32(rank, fsdp):
    ce = TinyNetwork().float().body[1]
    expected = TinyNetwork().bfloat16().float().body[1]
    x = 3 + torch.randn(4, 8, 6, 5, generator=torch.Generator().manual_seed(rank))
    y = globals()[fsdp](ce)(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected(x.bfloat16().float()), rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(buffers(ce), buffers(expected))


@pytest.mark.parametrize("world_size", [2, 4])
def test_mmengine(world_size, tmp_path):
    on_ranks(mmengine_trains_saves_and_resumes, world_size, str(tmp_path))


@pytest.mark.parametrize("check", [a_moved_folder_resumes, the_parts_of_all_are_saved_together])
def test_checkpoints_of_mmengine(check, tmp_path):
    on_ranks(check, 2, str(tmp_path))


@pytest.mark.parametrize("world_size", [2, 4])
def test_fully_shard(world_size):
    on_ranks(fully_shard_trains_saves_and_loads, world_size)


@pytest.mark.parametrize("fsdp", ["first_fsdp", "second_fsdp"])
def test_mixed_precision_is_that_of_the_map_alone(fsdp):
    on_ranks(coefficients_stay_float32, 2, fsdp)
