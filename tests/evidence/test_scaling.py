"""The model of a training step on many GPUs: held against sums done by hand, and against what must hold of any."""
import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tools.evidence.scaling.message_time import fit
from tools.evidence.scaling.messages import Collective
from tools.evidence.scaling.model import Cluster, Network, step, training_hours
from tools.evidence.scaling.page import KINDS, Assumptions, estimate, read_benchmark, sensitivity, write

#: Round numbers: seconds, and bytes a second.
CLUSTER = Cluster(
    gpus_per_node=4, start=100, node_step=1, tree_step=10, ring_step=5, ring_step_inside=2,
    node_bandwidth=1000, network_bandwidth=100,
)  # fmt: skip
#: No latencies.
FLAT = replace(CLUSTER, start=0, node_step=0, tree_step=0, ring_step=0, ring_step_inside=0)
STATISTICS = [
    Collective("all_gather", 25, 100, "forward", "statistics"),
    Collective("all_reduce", 50, 200, "backward", "statistics"),
]
NETWORK = Network(3.0, 6.0, [*STATISTICS, Collective("all_reduce", 1000, 4000, "backward", "gradients")])


def test_an_all_reduce_in_a_node_goes_around_the_ring():
    # Six steps, as up and down a tree; but a byte passes each link 1.5 times, not twice.
    assert CLUSTER.all_reduce(4, 1000) == 100 + 6 + 1.5 * 1000 / 1000


def test_a_small_all_reduce_over_nodes_goes_through_a_tree_of_nodes():
    # 2 × (3 steps in the node + 2 between 4 nodes) + 2 × 100 bytes at 100 a second.
    assert CLUSTER.all_reduce(16, 100) == 100 + 2 * (3 * 1 + 2 * 10) + 2


def test_a_large_all_reduce_over_nodes_goes_around_the_ring():
    # 2 × 15 steps, 8 of them between nodes.
    size = 1e6
    assert CLUSTER.all_reduce(16, size) == pytest.approx(100 + 22 * 2 + 8 * 5 + 2 * 15 / 16 * size / 100)


def test_an_all_gather_goes_around_the_ring():
    assert CLUSTER.all_gather(4, 50) == 100 + 3 * 1 + 3 * 50 / 1000
    assert CLUSTER.all_gather(16, 50) == 100 + 12 * 2 + 3 * 5 + 15 * 50 / 100


def test_an_incomplete_last_doubling_of_nodes_is_a_step_of_the_tree_too():
    assert CLUSTER.all_reduce(12, 0) == CLUSTER.all_reduce(16, 0)


def test_one_gpu_has_nobody_to_talk_to():
    alone = step(NETWORK, CLUSTER, 1)
    assert alone.no_overlap == alone.full_overlap == alone.alone == 9


def test_without_latency_and_with_endless_bandwidth_nothing_costs():
    free = replace(FLAT, node_bandwidth=float("inf"), network_bandwidth=float("inf"))
    assert step(NETWORK, free, 1024).no_overlap == 9


def test_without_latency_a_ring_s_time_is_its_bytes_alone():
    assert FLAT.all_reduce(4, 1000) == 2 * 3 / 4 * 1000 / 1000


def test_gradients_hide_behind_the_backward_pass_and_statistics_do_not():
    bounds = step(NETWORK, FLAT, 4)
    gather, reduce, gradients = 3 * 100 / 1000, 1.5 * 200 / 1000, 1.5 * 4000 / 1000
    assert bounds.no_overlap == pytest.approx(9 + gather + reduce + gradients)
    assert bounds.full_overlap == pytest.approx(3 + gather + 6 + reduce)  # gradients take 6, less than that


def test_gradients_that_take_longer_than_the_backward_pass_stand_out():
    slow = replace(FLAT, node_bandwidth=100)
    bounds = step(NETWORK, slow, 4)
    assert bounds.full_overlap == pytest.approx(3 + 3 * 100 / 100 + 1.5 * 4000 / 100)


def test_a_group_s_statistics_cost_what_they_cost_on_the_group_alone():
    for gpus in (4, 16, 1024):
        grouped = step(NETWORK, CLUSTER, gpus, sync_group=4)
        assert grouped.forward_statistics == CLUSTER.all_gather(4, 100)
        assert grouped.backward_statistics == CLUSTER.all_reduce(4, 200)
        assert grouped.gradients == CLUSTER.all_reduce(gpus, 4000)


def test_more_gpus_slower_links_and_larger_messages_never_make_a_step_shorter():
    steps = [step(NETWORK, Cluster(), 8 * 2**doubling) for doubling in range(8)]
    for bound in ("no_overlap", "full_overlap"):
        values = [getattr(each, bound) for each in steps]
        assert values == sorted(values)
    for name in ("start", "node_step", "tree_step", "ring_step", "ring_step_inside"):
        slower = replace(Cluster(), **{name: 10 * getattr(Cluster(), name)})
        assert step(NETWORK, slower, 64).no_overlap >= step(NETWORK, Cluster(), 64).no_overlap
    assert Cluster().all_reduce(64, 2e6) > Cluster().all_reduce(64, 1e6)


def test_an_epoch_has_whole_steps():
    assert training_hours(3600, gpus=2, batch=5, pictures=101, epochs=3) == 3 * 11


@pytest.mark.parametrize("gpus", [0, 6, 18])
def test_gpus_that_do_not_fill_nodes_are_refused(gpus):
    with pytest.raises(ValueError, match=f"got {gpus}"):
        step(NETWORK, CLUSTER, gpus)


def test_groups_that_do_not_divide_the_gpus_are_refused():
    with pytest.raises(ValueError, match="16 GPUs cannot be cut into groups of 3"):
        step(NETWORK, CLUSTER, 16, sync_group=3)


def test_a_collective_without_a_model_is_refused():
    with pytest.raises(ValueError, match="not for broadcast"):
        CLUSTER.seconds([Collective("broadcast", 1, 4, "forward", "statistics")], 4)


@pytest.mark.parametrize("wrong", [dict(start=-1.0), dict(network_bandwidth=0.0), dict(gpus_per_node=0)])
def test_a_cluster_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* must be"):
        Cluster(**wrong)


GRADIENTS = NETWORK.collectives[2:]
COUNTED = {name: GRADIENTS if name in ("BN", "CE") else [*STATISTICS, *GRADIENTS] for name in KINDS}
ASSUMED = Assumptions(pictures_per_second=1000, backward_share=0.75, ce_ratio=1.25, cluster=Cluster(start=1.0))


def test_a_network_s_step_on_one_gpu_is_its_pictures_over_their_rate():
    plain, equalised = (ASSUMED.network(KINDS[name], []) for name in ("SyncBN", "SyncCE"))
    assert (plain.forward, plain.backward) == pytest.approx((0.008, 0.024))
    assert (equalised.forward, equalised.backward) == pytest.approx((0.01, 0.03))


def test_what_shares_statistics_has_a_row_in_groups_too():
    names = [row.name for row in estimate(COUNTED, ASSUMED, [8])]
    assert names[:4] == ["BN", "SyncBN", "SyncBN, in groups of 8", "CE"]
    assert len(names) == len(KINDS) + 4


def test_every_changed_assumption_changes_what_it_should():
    changed = sensitivity(COUNTED, ASSUMED, [64])
    rows = {change: {row.name: row.steps[0] for row in found} for change, found in changed.items()}
    normal = rows.pop("as assumed")
    for change, found in rows.items():
        assert found["SyncCE"] != normal["SyncCE"], change
    assert rows["all latencies doubled"]["BN"].alone == normal["BN"].alone
    assert rows["GPUs of half the speed"]["BN"].alone == pytest.approx(2 * normal["BN"].alone)
    assert rows["CE computes as fast as BN"]["CE"].alone == normal["BN"].alone


def test_the_page_names_what_was_assumed_and_says_that_it_is_an_estimate(tmp_path):
    sources = dict.fromkeys(("pictures_per_second", "backward_share", "ce_ratio"), "a guess")
    write(COUNTED, ASSUMED, sources, fit([8, 80], [1.0, 2.0]), tmp_path, "python some.py")
    page = (tmp_path / "scaling.md").read_text(encoding="utf-8")
    assert "Nothing on this page was run on a GPU" in page
    assert "| pictures a second on one GPU, plain ResNet-50 | 1000 | a guess |" in page
    assert "| start of a collective | 1e+06 µs | chosen for this page |" in page
    assert (tmp_path / "scaling.png").stat().st_size > 1000
    steps = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))["steps"]
    network = ASSUMED.network(KINDS["BN"], COUNTED["BN"])
    assert steps["BN"][0]["no_overlap"] == step(network, ASSUMED.cluster, 8).no_overlap


def test_the_benchmark_s_record_gives_share_and_ratio(tmp_path):
    ms = dict(forward=dict(ms=100), backward=dict(ms=300))
    record = dict(networks=dict(resnet50=dict(variants=dict(BN=ms, CE=dict(step=dict(ratio=1.25))))))
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert read_benchmark(tmp_path / "a.json") == (0.75, 1.25)
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match=r"b\.json: expected what tools\.evidence\.benchmark\.network wrote"):
        read_benchmark(tmp_path / "b.json")


@pytest.mark.parametrize("wrong", [dict(pictures_per_second=0), dict(ce_ratio=-1), dict(batch=0)])
def test_assumptions_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be greater than 0"):
        replace(ASSUMED, **wrong)


def test_the_benchmark_s_record_is_not_replaced_by_the_page_s_numbers(tmp_path, monkeypatch, capsys):
    record = tmp_path / "scaling.json"
    shutil.copy(Path(__file__).parents[2] / "docs/benchmark/network_cpu.json", record)
    before = record.read_bytes()
    monkeypatch.setattr("sys.argv", ["scaling", "--benchmark", str(record), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("tools.evidence.scaling", run_name="__main__")
    assert "scaling.json, from which it would be made" in capsys.readouterr().err
    assert record.read_bytes() == before
