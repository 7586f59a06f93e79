"""The model of a training step on many GPUs: held against sums done by hand, and against what must hold of any."""
import json
from dataclasses import replace

import pytest

from tools.evidence.scaling.messages import Message
from tools.evidence.scaling.model import Assumptions, step
from tools.evidence.scaling.page import KINDS, estimate, read_benchmark, sensitivity, write

#: A plain step computes 9 µs. Bandwidths of 1000 and 100 bytes per µs.
SMALL = Assumptions(
    backward_share=2 / 3, ce_ratio=1.25, pictures_per_second=1e6, batch=9, gpus_per_node=4, start=100, node_step=1,
    tree_step=10, ring_step=5, ring_step_inside=2, node_bandwidth=1, network_bandwidth=0.1,
)  # fmt: skip
#: No latencies.
FLAT = replace(SMALL, start=0, node_step=0, tree_step=0, ring_step=0, ring_step_inside=0)
STATISTICS = [Message("all_gather", 100, "forward", "statistics"), Message("all_reduce", 200, "backward", "statistics")]
GRADIENTS = [Message("all_reduce", 4000, "backward", "gradients")]
MESSAGES = [*STATISTICS, *GRADIENTS]
PAPER = Assumptions(backward_share=0.6, ce_ratio=1.25)


def plain_step(assumptions, gpus, sync_group=None):
    return step(MESSAGES, False, assumptions, gpus, sync_group)


def test_an_all_reduce_in_a_node_goes_around_the_ring():
    # Six steps, as up and down a tree; but a byte passes each link 1.5 times, not twice.
    assert SMALL.all_reduce(4, 1000) == 100 + 6 + 1.5 * 1000 / 1000


def test_a_small_all_reduce_over_nodes_goes_through_a_tree_of_nodes():
    # 2 × (3 steps in the node + 2 between 4 nodes) + 2 × 100 bytes at 100 a second.
    assert SMALL.all_reduce(16, 100) == 100 + 2 * (3 * 1 + 2 * 10) + 2


def test_a_large_all_reduce_over_nodes_goes_around_the_ring():
    # 2 × 15 steps, 8 of them between nodes.
    size = 1e6
    assert SMALL.all_reduce(16, size) == pytest.approx(100 + 22 * 2 + 8 * 5 + 2 * 15 / 16 * size / 100)


def test_an_all_gather_goes_around_the_ring():
    assert SMALL.all_gather(4, 50) == 100 + 3 * 1 + 3 * 50 / 1000
    assert SMALL.all_gather(16, 50) == 100 + 12 * 2 + 3 * 5 + 15 * 50 / 100


def test_an_incomplete_last_doubling_of_nodes_is_a_step_of_the_tree_too():
    assert SMALL.all_reduce(12, 0) == SMALL.all_reduce(16, 0)


def test_without_latency_and_with_endless_bandwidth_nothing_costs():
    free = replace(FLAT, node_bandwidth=float("inf"), network_bandwidth=float("inf"))
    assert plain_step(free, 1024).no_overlap == pytest.approx(9)


def test_without_latency_a_ring_s_time_is_its_bytes_alone():
    assert FLAT.all_reduce(4, 1000) == 2 * 3 / 4 * 1000 / 1000


def test_gradients_hide_behind_the_backward_pass_and_statistics_do_not():
    bounds = plain_step(FLAT, 4)
    gather, reduce, gradients = 3 * 100 / 1000, 1.5 * 200 / 1000, 1.5 * 4000 / 1000
    assert bounds.no_overlap == pytest.approx(9 + gather + reduce + gradients)
    assert bounds.full_overlap == pytest.approx(3 + gather + 6 + reduce)  # gradients take 6, less than that


def test_gradients_that_take_longer_than_the_backward_pass_stand_out():
    slow = replace(FLAT, node_bandwidth=0.1)
    bounds = plain_step(slow, 4)
    assert bounds.full_overlap == pytest.approx(3 + 3 * 100 / 100 + 1.5 * 4000 / 100)


def test_a_group_s_statistics_cost_what_they_cost_on_the_group_alone():
    for gpus in (4, 16, 1024):
        grouped = plain_step(SMALL, gpus, sync_group=4)
        assert grouped.forward_statistics == SMALL.all_gather(4, 100)
        assert grouped.backward_statistics == SMALL.all_reduce(4, 200)
        assert grouped.gradients == SMALL.all_reduce(gpus, 4000)


def test_more_gpus_slower_links_and_larger_messages_never_make_a_step_shorter():
    steps = [plain_step(PAPER, 8 * 2**doubling) for doubling in range(8)]
    for bound in ("no_overlap", "full_overlap"):
        values = [getattr(each, bound) for each in steps]
        assert values == sorted(values)
    for name in ("start", "node_step", "tree_step", "ring_step", "ring_step_inside"):
        slower = replace(PAPER, **{name: 10 * getattr(PAPER, name)})
        assert plain_step(slower, 64).no_overlap >= plain_step(PAPER, 64).no_overlap
    assert PAPER.all_reduce(64, 2e6) > PAPER.all_reduce(64, 1e6)


def test_a_step_on_one_gpu_is_its_pictures_over_their_rate_and_with_ce_so_much_longer():
    assumptions = replace(PAPER, pictures_per_second=1000, backward_share=0.75)
    plain, with_ce = (step([], has_ce, assumptions, 8) for has_ce in (False, True))
    assert (plain.forward, plain.backward) == pytest.approx((8e3, 24e3))
    assert (with_ce.forward, with_ce.backward) == pytest.approx((10e3, 30e3))


COUNTED = {name: GRADIENTS if name in ("BN", "CE") else MESSAGES for name in KINDS}


def test_what_shares_statistics_has_a_row_in_groups_too():
    names = list(estimate(COUNTED, PAPER))
    assert names[:4] == ["BN", "SyncBN", "SyncBN, in groups of 8", "CE"]
    assert len(names) == len(KINDS) + 4


def test_every_changed_assumption_changes_what_it_should():
    changed = sensitivity(COUNTED, PAPER, [64])
    rows = {change: {name: steps[0] for name, steps in found.items()} for change, found in changed.items()}
    normal = rows.pop("as assumed")
    for change, found in rows.items():
        assert found["SyncCE"] != normal["SyncCE"], change
    assert rows["all latencies doubled"]["BN"].alone == normal["BN"].alone
    assert rows["GPUs of half the speed"]["BN"].alone == pytest.approx(2 * normal["BN"].alone)
    assert rows["CE computes as fast as BN"]["CE"].alone == normal["BN"].alone


def test_the_page_names_what_was_assumed_and_says_that_it_is_an_estimate(tmp_path):
    write(COUNTED, replace(PAPER, pictures_per_second=1000), tmp_path / "new")
    page = (tmp_path / "new/scaling.md").read_text(encoding="utf-8")
    assert "Nothing on this page was run on a GPU" in page
    assert "| pictures a second on one GPU, plain ResNet-50 | 1000 |" in page
    assert "| start of a collective | 6.7 µs |" in page
    assert (tmp_path / "new/scaling.png").stat().st_size > 1000
    steps = json.loads((tmp_path / "new/scaling.json").read_text(encoding="utf-8"))["microseconds"]
    assert steps["BN"][0] == vars(step(GRADIENTS, False, replace(PAPER, pictures_per_second=1000), 8))


def test_the_benchmark_s_newest_run_gives_share_and_ratio(tmp_path):
    ms = dict(forward=dict(ms=100), backward=dict(ms=300))
    variants = {"BN": ms, "CE plain": dict(step=dict(ratio=1.5)), "CE compiled": dict(step=dict(ratio=1.25))}
    for expected in (1.25, 1.5):  # without a compiled backend what there is
        runs = dict(new=dict(networks=dict(resnet50=variants)), old={})
        (tmp_path / "a.json").write_text(json.dumps(dict(records=runs)))
        assert read_benchmark(tmp_path / "a.json") == Assumptions(0.75, expected)
        variants.pop("CE compiled", None)
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match=r"b\.json: expected what tools\.evidence\.benchmark\.network wrote"):
        read_benchmark(tmp_path / "b.json")
