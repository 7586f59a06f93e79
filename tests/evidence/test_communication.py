"""What a training step sends is counted as it happens: held against the sums that each layer's formula gives."""
from functools import partial

import pytest
from message_checks import CHANNELS, GROUP, network, sync_batch_norm_equals_the_joined_batch, uncountable, wayward
from torch.multiprocessing import ProcessRaisedException

from tools.evidence.scaling.message_time import fit
from tools.evidence.scaling.messages import Collective, start, total, training_steps

KINDS = ("BN", "SyncBN", "CE", "CE on SyncBN", "SyncCE")
SHAPE = (2, 3, 4, 4)


@pytest.fixture(scope="module")
def counted():
    return training_steps({kind: partial(network, kind) for kind in KINDS}, SHAPE)


def statistics(collectives):
    return [(each.kind, each.phase, each.elements, each.bytes) for each in collectives if each.purpose == "statistics"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_all_parameters_are_sent_once(counted, kind):
    gradients = [each for each in counted[kind] if each.purpose == "gradients"]
    assert sum(each.elements for each in gradients) == sum(p.numel() for p in network(kind).parameters())
    assert {(each.kind, each.phase) for each in gradients} == {("all_reduce", "backward")}
    assert all(each.bytes == 4 * each.elements for each in gradients)


@pytest.mark.parametrize("kind", ["BN", "CE"])
def test_norms_of_each_process_send_nothing(counted, kind):
    assert statistics(counted[kind]) == []


def test_sync_bn_gathers_two_numbers_a_channel_and_a_count_and_adds_up_two_backward(counted):
    forward, backward = 2 * CHANNELS + 1, 2 * CHANNELS
    assert statistics(counted["SyncBN"]) == [
        ("all_gather", "forward", forward, 4 * forward),
        ("all_reduce", "backward", backward, 4 * backward),
    ]


def test_ce_on_sync_bn_agrees_on_a_shift_before_it_adds_up(counted):
    shift, sums = CHANNELS + 1, 2 * CHANNELS + 1
    assert statistics(counted["CE on SyncBN"]) == [
        ("all_reduce", "forward", shift, 4 * shift),
        ("all_reduce", "forward", sums, 4 * sums),
        ("all_reduce", "backward", sums, 4 * sums),
    ]


def test_sync_ce_sends_one_message_of_float64_each_way(counted):
    sums = CHANNELS * (GROUP + 2) + 2
    assert statistics(counted["SyncCE"]) == [
        ("all_reduce", "forward", sums, 8 * sums),
        ("all_reduce", "backward", sums, 8 * sums),
    ]


def test_totals_are_of_what_was_asked_for(counted):
    assert total(counted["SyncBN"], purpose="statistics", phase="forward").calls == 1
    assert total(counted["SyncBN"]).calls == len(counted["SyncBN"])
    assert total([Collective("all_reduce", 3, 12, "forward", "statistics")] * 2).bytes == 24


def test_processes_that_do_not_make_the_same_calls_are_found_out():
    with pytest.raises(RuntimeError, match="did not make the same collective calls"):
        training_steps({"wayward": wayward}, SHAPE)


def test_a_call_that_cannot_be_counted_is_an_error():
    with pytest.raises(ProcessRaisedException, match=r"c10d\.barrier.* is none of the collectives"):
        training_steps({"uncountable": uncountable}, SHAPE)


def test_pytorch_s_sync_bn_on_the_cpu_equals_bn_of_the_joined_batch(tmp_path):
    samples = (3, 1)
    start(sync_batch_norm_equals_the_joined_batch, len(samples), samples, str(tmp_path))



def test_the_line_through_times_on_a_line_is_that_line():
    line = fit([8, 1000, 100_000], [1e-4 + size / 2e9 for size in (8, 1000, 100_000)])
    assert (line.latency, line.bandwidth) == (pytest.approx(1e-4), pytest.approx(2e9))
    assert line.foretold(500) == pytest.approx(1e-4 + 500 / 2e9)
