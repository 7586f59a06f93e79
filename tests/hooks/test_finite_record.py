import torch

from ce_mm.hooks.finite_record import FiniteRecord

NAN, INFINITY = float("nan"), float("inf")


def test_what_is_not_finite_is_named_by_iteration_in_order():
    record = FiniteRecord()
    record.add(3, [(1, "b"), (2, "c")], torch.tensor([False, False]))
    record.add_scalars(3, {(0, "a"): torch.tensor(NAN), (4, "d"): torch.tensor(1.0)})
    record.add_scalars(2, {(0, "a"): torch.tensor(-INFINITY), (4, "d"): torch.tensor(True)})
    record.add_scalars(1, {(0, "a"): torch.tensor(0.0)})
    assert record.take() == {2: [(0, "a")], 3: [(0, "a"), (1, "b"), (2, "c")]}


def test_what_was_taken_is_forgotten():
    record = FiniteRecord()
    record.add_scalars(1, {(0, "a"): torch.tensor(NAN)})
    assert record.take()
    assert record.take() == {}


def test_numbers_of_all_types_are_recorded_together():
    record = FiniteRecord()
    types = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    record.add_scalars(1, {(i, str(t)): torch.tensor(NAN if i % 2 else 1.0, dtype=t) for i, t in enumerate(types)})
    assert record.take() == {1: [(1, "torch.bfloat16"), (3, "torch.float64")]}


def test_a_number_that_changes_later_is_recorded_as_it_was():
    record, loss = FiniteRecord(), torch.tensor(NAN)
    record.add_scalars(1, {(0, "loss"): loss})
    loss.zero_()
    assert record.take() == {1: [(0, "loss")]}
