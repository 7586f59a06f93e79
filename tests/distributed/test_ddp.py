"""CE under mmengine's DDP: gradients are the mean over the processes, statistics are those of each."""
import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import SyncBuffersHook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from ranks import on_ranks
from tiny_network import TinyNetwork, buffers, gradients, mean, samples

LR = 0.1


def batch(step, rank):
    """What a process trains on in a step."""
    return samples(2 + rank, seed=100 * step + rank)


def ddp(**settings):
    return MMDistributedDataParallel(TinyNetwork(), **settings)


def move(net, directions):
    for p, d in zip(net.parameters(), directions, strict=True):
        p.data.sub_(LR * d)


def assert_same_everywhere(values):
    for value in values:
        first = value.detach().clone()
        dist.broadcast(first, 0)
        torch.testing.assert_close(value, first, rtol=0, atol=0)


def gradients_are_the_mean_of_the_parts(rank):
    net, model = TinyNetwork(), ddp(broadcast_buffers=False)
    model(**batch(0, rank))["loss"].backward()
    expected = mean([gradients(net, batch(0, r)) for r in range(dist.get_world_size())])
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, e)


def each_process_keeps_its_own_averages(rank):
    net, model = TinyNetwork(), ddp(broadcast_buffers=False)
    for step in range(2):
        model(**batch(step, rank))["loss"].backward()
        net(**batch(step, rank))
    torch.testing.assert_close(buffers(model.module), buffers(net), rtol=0, atol=0)


def averages_of_the_first_process_are_taken_before_each_step(rank):
    first, net, model = TinyNetwork(), TinyNetwork(), ddp(broadcast_buffers=True)
    for step in range(3):
        model(**batch(step, rank))["loss"].backward()
        net.load_state_dict(first.state_dict())
        net(**batch(step, rank))
        first(**batch(step, 0))
    torch.testing.assert_close(buffers(model.module), buffers(net), rtol=0, atol=0)


def the_hook_leaves_the_mean_of_all_averages(rank):
    model = ddp(broadcast_buffers=False)
    model(**batch(0, rank))["loss"].backward()
    runner = type("Runner", (), dict(model=model))
    SyncBuffersHook().after_train_epoch(runner)
    every = []
    for r in range(dist.get_world_size()):
        net = TinyNetwork()
        net(**batch(0, r))
        every.append(buffers(net))
    for name, value in buffers(model.module).items():
        torch.testing.assert_close(value, torch.stack([b[name].double() for b in every]).mean(0).to(value.dtype))
    assert_same_everywhere(model.buffers())


def accumulated_gradients_are_the_mean_of_the_batches(rank, wrapped):
    net = TinyNetwork()
    model = ddp(broadcast_buffers=False) if wrapped else TinyNetwork()
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=LR), accumulative_counts=2)
    optim.initialize_count_status(model, 0, 5)
    ranks = range(dist.get_world_size()) if wrapped else [rank]
    for steps in ([0, 1], [2, 3], [4]):  # the last batch stands alone
        for step in steps:
            model.train_step(batch(step, rank), optim)
        move(net, mean([gradients(net, batch(step, r)) for step in steps for r in ranks]))
        torch.testing.assert_close(list(model.parameters()), list(net.parameters()))
    if wrapped:
        assert_same_everywhere(model.parameters())


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize(
    "check",
    [
        gradients_are_the_mean_of_the_parts,
        each_process_keeps_its_own_averages,
        averages_of_the_first_process_are_taken_before_each_step,
        the_hook_leaves_the_mean_of_all_averages,
    ],
    ids=lambda check: check.__name__,
)
def test_under_ddp(check, world_size):
    on_ranks(check, world_size)


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "ddp"])
def test_accumulated_gradients_are_the_mean_of_the_batches(wrapped):
    on_ranks(accumulated_gradients_are_the_mean_of_the_batches, 2, wrapped)
