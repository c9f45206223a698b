"""The operations that stand in for those that ONNX lacks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simmst.core.exporting import largest, lower_median


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_largest_is_a_stable_sort(numbers, data):
    count = data.draw(st.integers(1, len(numbers)))
    measure = torch.tensor([numbers, numbers[::-1]], dtype=torch.float32)
    measure[0, data.draw(st.integers(0, len(numbers) - 1))] = float("nan")
    order = measure.sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(largest(measure, count), order[..., :count].sort(dim=-1).values)


@given(st.integers(0, 10_000), st.integers(1, 7))
def test_the_lower_median_is_that_of_nanmedian(seed, days):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, days, 2, generator=generator)
    known = torch.rand(3, days, 2, generator=generator) < 0.5
    expected = torch.where(known, values, torch.nan).nanmedian(dim=1).values.nan_to_num()
    assert torch.equal(lower_median(values, known, 1), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_infinities_are_numbers(count):
    measure = torch.tensor([-torch.inf, torch.inf, -torch.inf])
    assert largest(measure, count).tolist() == [[1], [0, 1, 2]][count == 3]
