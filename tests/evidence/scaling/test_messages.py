"""What a training step sends is counted as it happens: held against the sums that each layer's formula gives."""
import pytest
import torch
import torch.distributed as dist
from torch import nn

from ce_mm.layers import CENorm
from tools.evidence.scaling.messages import Message, messages_of_a_step, total

CHANNELS, GROUP = 8, 4
SHAPE = (2, 3, 4, 4)
NORMS = {
    "BN": lambda: nn.BatchNorm2d(CHANNELS),
    "SyncBN": lambda: nn.SyncBatchNorm(CHANNELS),
    "CE": lambda: CENorm(CHANNELS, group_size=GROUP),
    "CE on SyncBN": lambda: CENorm(CHANNELS, norm=dict(type="SyncBN"), group_size=GROUP),
    "SyncCE": lambda: CENorm(CHANNELS, group_size=GROUP, sync=True),
}


def network(kind):
    """A convolution with 3·8 + 8 weights, and a norm."""
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 1), NORMS[kind]())


@pytest.fixture(scope="module")
def counted():
    return {kind: messages_of_a_step(network(kind), SHAPE) for kind in NORMS}


def statistics(messages):
    return [(each.kind, each.phase, each.bytes) for each in messages if each.purpose == "statistics"]


@pytest.mark.parametrize("kind", NORMS)
def test_the_gradients_of_all_parameters_are_sent_once(counted, kind):
    gradients = [each for each in counted[kind] if each.purpose == "gradients"]
    assert sum(each.bytes for each in gradients) == 4 * sum(p.numel() for p in network(kind).parameters())
    assert {(each.kind, each.phase) for each in gradients} == {("all_reduce", "backward")}


@pytest.mark.parametrize("kind", ["BN", "CE"])
def test_norms_of_each_process_send_nothing(counted, kind):
    assert statistics(counted[kind]) == []


def test_sync_bn_gathers_two_numbers_a_channel_and_a_count_and_adds_up_two_backward(counted):
    assert statistics(counted["SyncBN"]) == [
        ("all_gather", "forward", 4 * (2 * CHANNELS + 1)),
        ("all_reduce", "backward", 4 * 2 * CHANNELS),
    ]


def test_ce_on_sync_bn_agrees_on_a_shift_before_it_adds_up(counted):
    shift, sums = CHANNELS + 1, 2 * CHANNELS + 1
    assert statistics(counted["CE on SyncBN"]) == [
        ("all_reduce", "forward", 4 * shift),
        ("all_reduce", "forward", 4 * sums),
        ("all_reduce", "backward", 4 * sums),
    ]


def test_sync_ce_sends_one_message_of_float64_each_way(counted):
    sums = CHANNELS * (GROUP + 2) + 2
    assert statistics(counted["SyncCE"]) == [("all_reduce", "forward", 8 * sums), ("all_reduce", "backward", 8 * sums)]


def test_totals_are_of_what_was_asked_for(counted):
    assert total(counted["SyncBN"], purpose="statistics", phase="forward").calls == 1
    assert total(counted["SyncBN"]).calls == len(counted["SyncBN"])
    assert total([Message("all_reduce", 12, "forward", "statistics")] * 2).bytes == 24


class Waits(nn.Module):
    """Makes a call in its forward pass that nobody knows how to count."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        dist.barrier()
        return self.weight * x.mean()


def test_a_call_that_cannot_be_counted_is_an_error_and_the_process_group_is_gone():
    with pytest.raises(NotImplementedError, match=r"c10d\.barrier.* is none of the collectives"):
        messages_of_a_step(Waits(), SHAPE)
    assert not dist.is_initialized()
