"""The rule by which an average is chosen: literal cases, a slow reference."""

import math

import pytest
import torch
from gloo import run_on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from weightavg.pytorch.selection import (
  Selector,
  choose,
  compare,
  standard_error,
)

NAN, INF = float('nan'), float('inf')


def comparison(rows, elements=None):
  losses = torch.tensor(rows, dtype=torch.float64)
  count = losses.shape[1] if elements is None else elements
  return compare(losses, torch.tensor(count))


@pytest.mark.parametrize(
  ('rows', 'previous', 'expected'),
  [
    # Differences 1, 1, 1: no noise, so any gain counts.
    ([[3.0, 2.0, 1.0], [2.0, 1.0, 0.0]], 0, 1),
    # Differences 3, -1, 1: gain 1, SE = sqrt(4 / 3) = 1.155.
    ([[4.0, 1.0, 2.0], [1.0, 2.0, 1.0]], 0, 0),
    # Differences 3, 0, 1.5: gain 1.5, SE = sqrt(2.25 / 3) = 0.866.
    ([[4.0, 1.0, 2.5], [1.0, 1.0, 1.0]], 0, 1),
    # A previous choice that is the best stays.
    ([[4.0, 1.0, 2.5], [1.0, 1.0, 1.0]], 1, 1),
    # None before: the best, the first of equal ones.
    ([[2.0, 2.0], [1.0, 1.0], [1.0, 1.0]], -1, 1),
    # The lowest loss is by luck (gain 1, SE 1.155), the other is certain.
    ([[4.0, 1.0, 2.0], [1.0, 2.0, 1.0], [3.5, 0.5, 1.5]], 0, 2),
    # Both are certain (gains 1.5 and 2, SE 0.866 and 0): the lower one.
    ([[4.0, 1.0, 2.5], [1.0, 1.0, 1.0], [2.0, -1.0, 0.5]], 0, 2),
    # The same losses as before: it stays.
    ([[1.0, 2.0], [1.0, 2.0]], 1, 1),
    # One example tells nothing about the noise.
    ([[9.0], [1.0]], 0, 0),
    ([[9.0], [1.0]], -1, 1),
    # What is not finite is out, also as the previous choice.
    ([[1.0, 2.0], [NAN, 0.0], [1.5, 2.0]], 0, 0),
    ([[1.0, INF], [3.0, 4.0], [2.0, 2.0]], 0, 2),
    ([[NAN, 1.0], [INF, 1.0]], 0, None),
  ],
)
def test_literal_cases(rows, previous, expected):
  assert choose(comparison(rows), previous) == expected


def test_the_standard_error_is_that_of_the_mean_difference():
  # Differences 3, -1, 1: variance 4, so sqrt(4 / 3).
  result = comparison([[4.0, 1.0, 2.0], [1.0, 2.0, 1.0]])
  assert standard_error(result, 0, 1) == pytest.approx(
    math.sqrt(4 / 3), rel=1e-15
  )
  assert standard_error(result, 0, 0) == 0.0


def test_losses_are_per_element():
  result = comparison([[4.0, 2.0], [3.0, 1.0]], elements=8)
  assert result.means == [0.75, 0.5]


def test_a_mask_without_examples_divides_by_nothing():
  result = comparison([[0.0, 0.0], [0.0, 0.0]], elements=0)
  assert choose(result, 0) == 0


def reference(losses, previous):
  """The rule, word for word, with Python's own numbers; None if it is close."""
  m = len(losses[0])
  means = [sum(row) / m for row in losses]
  if previous < 0:
    return means.index(min(means))
  better = []
  for i, row in enumerate(losses):
    gains = [p - value for p, value in zip(losses[previous], row, strict=True)]
    mean = sum(gains) / m
    variance = sum((gain - mean) ** 2 for gain in gains) / (m - 1)
    error = math.sqrt(variance / m)
    if math.isclose(mean, error, rel_tol=1e-9, abs_tol=1e-12) and i != previous:
      return None
    if mean > error:
      better.append(i)
  return min(better, key=lambda i: means[i], default=previous)


# Whole numbers of eighths: every sum and square is exact.
eighths = st.integers(-64, 64).map(lambda n: n / 8)


@settings(deadline=None, max_examples=200)
@given(
  data=st.data(),
  candidates=st.integers(2, 5),
  examples=st.integers(2, 9),
  shift=eighths,
)
def test_the_rule_is_the_reference_and_ignores_what_all_have_in_common(
  data, candidates, examples, shift
):
  row = st.lists(eighths, min_size=examples, max_size=examples)
  losses = data.draw(st.lists(row, min_size=candidates, max_size=candidates))
  previous = data.draw(st.integers(-1, candidates - 1))
  expected = reference(losses, previous)
  # A gain that equals its error falls either way by rounding.
  if expected is not None:
    assert choose(comparison(losses), previous) == expected
    shifted = [[value + shift for value in row] for row in losses]
    assert choose(comparison(shifted), previous) == expected


def _on_rank(rank, losses, elements, expected):
  share = losses[:, 3 * rank : 3 * rank + 3]
  result = compare(share, torch.tensor(elements[rank]))
  for one, other in zip(vars(result).values(), expected, strict=True):
    assert torch.equal(one, other)


def test_ranks_compare_all_examples_together():
  # Eighths: the same sums in any order.
  generator = torch.Generator().manual_seed(0)
  losses = torch.randint(-64, 64, (3, 6), generator=generator) / 8
  expected = [*vars(compare(losses, torch.tensor(11.0))).values()]
  run_on_ranks(2, _on_rank, losses, [7.0, 4.0], expected)


def test_without_memory_a_selector_is_the_rule():
  generator = torch.Generator().manual_seed(0)
  selector, previous = Selector(0.0), -1
  for step in range(20):
    now = compare(torch.randn(4, 3, generator=generator), torch.tensor(3))
    expected = choose(now, previous)
    previous = selector.choose(now, previous, step, step)
    assert previous == expected


def test_examples_of_earlier_evaluations_weigh_less():
  # Twice as many examples with weights 1/2 and 1, against the plain sums.
  generator = torch.Generator().manual_seed(1)
  first, second = torch.randn(2, 2, 5, generator=generator).double()
  selector = Selector(0.5)
  selector.choose(compare(first, torch.tensor(5)), -1, 1, 1)
  selector.choose(compare(second, torch.tensor(5)), -1, 2, 2)
  # What the next one would count by half again.
  known = selector._discounted()
  known = type(known)(known.losses * 2, known.squares * 2, known.counts * 2)
  known.counts[1] *= 2
  weights = torch.tensor([0.5] * 5 + [1.0] * 5).double()
  differences = torch.cat([first[0] - first[1], second[0] - second[1]])
  mean = (weights * differences).sum() / weights.sum()
  variance = (weights * (differences - mean) ** 2).sum() / weights.sum()
  equivalent = weights.sum() ** 2 / weights.square().sum()
  variance *= equivalent / (equivalent - 1)
  error = (variance * weights.square().sum()).sqrt() / weights.sum()
  assert known.means[0] - known.means[1] == pytest.approx(mean.item())
  assert standard_error(known, 0, 1) == pytest.approx(error.item(), rel=1e-12)


def test_memory_finds_what_one_evaluation_cannot():
  # Gains of 3, -1, 1 each time: SE 1.155 alone, ever less with more of them.
  now = comparison([[4.0, 1.0, 2.0], [1.0, 2.0, 1.0]])
  alone, remembering = Selector(0.0), Selector(0.9)
  assert [alone.choose(now, 0, step, step) for step in range(3)] == [0, 0, 0]
  seen = [remembering.choose(now, 0, step, step) for step in range(3)]
  assert seen == [0, 1, 1]
  # The same examples again are no news.
  again = Selector(0.9)
  assert [again.choose(now, 0, step, 7) for step in range(3)] == [0, 0, 0]


def test_what_is_not_finite_is_forgotten():
  good = comparison([[4.0, 1.0, 2.0], [1.0, 2.0, 1.0]])
  bad = comparison([[4.0, 1.0, 2.0], [NAN, 2.0, 1.0]])
  selector = Selector(0.9)
  assert selector.choose(good, 0, 1, 1) == 0
  assert selector.choose(bad, 0, 2, 2) == 0
  # As if there had been nothing before.
  assert selector.choose(good, 0, 3, 3) == 0
  assert selector.choose(good, 0, 4, 4) == 1


def test_a_selector_continues_from_its_state():
  generator = torch.Generator().manual_seed(2)
  selector = Selector(0.7)
  states = []
  for step in range(4):
    states.append(selector.state_dict())
    now = compare(torch.randn(4, 3, generator=generator), torch.tensor(3))
    selector.choose(now, -1, step, step)
  empty = {'chosen_at': -1, 'probe': -1, 'before': [], 'latest': []}
  assert states[0] == empty
  restored = Selector(0.7)
  restored.load_state_dict(states[3])
  restored.choose(now, -1, 3, 3)
  one, other = selector.state_dict(), restored.state_dict()
  assert one['chosen_at'] == other['chosen_at'] == 3
  for key in ('before', 'latest'):
    for tensor, same in zip(one[key], other[key], strict=True):
      assert torch.equal(tensor, same)
