"""Training leaves nothing behind, and a loop that leaves something is found out."""
import sys

import pytest
from torch import nn

from tools.evidence.reliability.endurance import flat, write
from tools.evidence.reliability.memory import LOOPS, TOLERANCE, EnduranceNet, Memory, compare, train

FIXED, CHANGING = LOOPS.values()

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what the C library handed out is read from glibc")


class Hoarder(EnduranceNet):
    """Keeps what it computed."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def forward(self, x):
        y = super().forward(x)
        self.kept.append(y.detach().mean())
        return y


@pytest.mark.parametrize("loop", [FIXED, CHANGING], ids=["fixed", "changing"])
def test_three_hundred_steps_leave_no_tensor_and_no_object_behind(loop):
    _, first, *_, last = train(loop, steps=300, warmup=50, interval=50)
    assert last.tensors == first.tensors
    assert last.objects - first.objects < 10  # one for each step would be 250


def test_a_network_that_keeps_one_number_a_step_is_found_out():
    start, end = train(FIXED, steps=40, warmup=5, interval=40, network=Hoarder())
    assert end.tensors - start.tensors == 40
    assert end.allocated - start.allocated >= 40 * 64


def test_what_looks_itself_take_is_not_counted():
    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 10)

        def forward(self, x):
            return self.head(x.mean((2, 3)))

    looks = train(FIXED, steps=60, warmup=10, interval=1, network=Nothing())
    assert [look.step for look in looks] == list(range(61))
    assert looks[-1].objects == looks[10].objects


def growing(per_step):
    """Looks at every hundredth of 10,000 steps that leave something behind."""
    return [Memory(step, *(1_000_000 + per_step * step for _ in TOLERANCE)) for step in range(0, 10_001, 100)]


def test_first_and_last_thousand_are_compared_by_their_means():
    change = compare(growing(per_step=2))["objects"]
    assert (change.first, change.last, change.growth) == (1_000_000 + 2 * 550, 1_000_000 + 2 * 9550, 18_000)
    assert not change.flat


def test_what_stays_is_flat_and_what_falls_is_flat():
    assert flat({"a": growing(0), "b": growing(-1)})
    assert not flat({"a": growing(0), "b": growing(1000)})


def test_sixty_four_bytes_a_step_are_too_many():
    assert not compare(growing(64))["allocated"].flat


def test_too_few_steps_say_so():
    with pytest.raises(ValueError, match="at least 2000 are needed, not 1000"):
        compare(growing(0)[:11])


def test_the_page_has_a_table_for_each_loop(tmp_path):
    write({"calm": growing(0), "leaky": growing(100)}, 300, tmp_path, "python some.py")
    page = (tmp_path / "endurance.md").read_text(encoding="utf-8")
    calm, leaky = page.split("## calm")[1].split("## leaky")
    assert "| no |" not in calm and "| no |" in leaky
    assert (tmp_path / "endurance.png").stat().st_size > 1000
    assert (tmp_path / "endurance.json").exists()
