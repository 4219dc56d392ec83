"""Weights of samples: sums, literal values, recursion against explicit sum."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightavg import coefficients
from weightavg.coefficients import Ema, Lawa, Polynomial, Sampling

SCHEMES = st.one_of(
  st.integers(1, 20).map(Lawa),
  st.floats(0.0, 0.999).map(Ema),
  st.floats(0.0, 20.0).map(Polynomial),
)


@given(SCHEMES, st.integers(1, 60))
def test_weights_are_nonnegative_and_sum_to_one(scheme, count):
  weights = scheme.weights(count)
  assert len(weights) == count
  assert min(weights) >= 0.0
  # 60 additions of numbers below one round by less than 60 * 2^-53.
  assert sum(weights) == pytest.approx(1.0, abs=1e-13)


@given(
  st.one_of(
    st.floats(0.0, 0.999).map(Ema), st.floats(0.0, 20.0).map(Polynomial)
  ),
  st.lists(st.floats(-10, 10), min_size=1, max_size=30),
)
def test_recursion_equals_explicit_sum(scheme, samples):
  average = 0.0
  for k, x in enumerate(samples, start=1):
    average += scheme.coefficient(k) * (x - average)
    weights = scheme.weights(k)
    explicit = sum(w * s for w, s in zip(weights, samples, strict=False))
    # |x| <= 10 and at most 30 steps, each rounding by 2^-53 relative.
    assert average == pytest.approx(explicit, abs=1e-12)


def test_ema_weights_are_the_normalised_geometric_series():
  # (1 - b) b^(k-j) / (1 - b^k) with b = 0.2, k = 3: 0.8 / 0.992 * (.04, .2, 1)
  expected = [0.8 * 0.04 / 0.992, 0.8 * 0.2 / 0.992, 0.8 / 0.992]
  assert Ema(0.2).weights(3) == pytest.approx(expected, rel=1e-14)


def test_ema_with_decay_zero_is_the_last_sample():
  assert Ema(0.0).weights(3) == [0.0, 0.0, 1.0]


def test_ema_coefficient_survives_decays_next_to_one():
  # For b -> 1 the average is uniform: c_k -> 1/k. 1 - b^k computed naively
  # loses half of its digits here.
  assert Ema(1 - 1e-12).coefficient(4) == pytest.approx(0.25, rel=1e-11)


def test_lawa_uses_the_samples_that_are_there():
  assert Lawa(3).weights(2) == [0.5, 0.5]
  assert Lawa(3).weights(4) == pytest.approx([0.0, 1 / 3, 1 / 3, 1 / 3])


def test_polynomial_literal_weights():
  # gamma = 1: c_2 = 2/3, c_3 = 2/4, so w = (1/3 * 1/2, 2/3 * 1/2, 1/2).
  assert Polynomial(1.0).weights(3) == pytest.approx([1 / 6, 1 / 3, 1 / 2])


def test_polynomial_of_power_zero_is_the_uniform_mean():
  assert Polynomial(0.0).weights(5) == pytest.approx([0.2] * 5)


def test_sampled_steps():
  sampling = Sampling(every=3, start=5)
  assert [s for s in range(1, 13) if sampling.is_sampled(s)] == [6, 9, 12]
  assert Sampling(every=4).steps(12) == [4, 8, 12]


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 60))
def test_steps_lists_what_is_sampled(every, start, last):
  sampling = Sampling(every, start)
  listed = [s for s in range(1, last + 1) if sampling.is_sampled(s)]
  assert sampling.steps(last) == listed


def test_default_horizon_gives_the_papers_window_and_decay():
  window = coefficients.samples_in_horizon(0.01, 0.002)
  assert window == 5
  assert coefficients.decay_of_window(window) == pytest.approx(0.8)


def test_horizon_shorter_than_the_cadence_keeps_one_sample():
  assert coefficients.samples_in_horizon(0.001, 0.01) == 1
