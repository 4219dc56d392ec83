"""Literal values and messages, without which mutants of the core survived."""

import pytest

from weightavg.learning_rate import factor, factor_at
from weightavg.schemes import Lawa


def test_the_default_schedule_is_the_cosine():
  for step in range(10):
    assert factor(step, 8, 0.25) == factor(step, 8, 0.25, 'cosine')
    assert factor_at(step / 8, 0.25) == factor_at(step / 8, 0.25, 'cosine')
  assert factor(5, 8, 0.25) == pytest.approx(0.5)
  assert factor_at(5 / 8, 0.25) == pytest.approx(0.5)


def test_a_schedule_of_one_step_after_the_warm_up_ends_at_zero():
  assert factor(1, 2, 0.5) == 1.0
  assert factor(2, 2, 0.5) == pytest.approx(0.0)


def test_the_position_in_a_warm_up_is_linear():
  # Exactly: a mutant differs by the start of the warm-up, 1e-10.
  assert factor_at(0.125, 0.25) == 1e-10 + (1.0 - 1e-10) * 0.5
  assert factor_at(0.0, 0.25) == 1e-10
  # Past the end the rate stays what it is there.
  assert factor_at(2.0, 0.25, 'cosine_to_half') == pytest.approx(0.5)


def test_messages_are_whole():
  expected = 'Must be one of cosine, cosine_to_half, constant.'
  with pytest.raises(ValueError, match=f"^Invalid schedule='x'. {expected}$"):
    factor(0, 8, 0.0, 'x')
  with pytest.raises(
    ValueError,
    match=r"^Missing steps_per_epoch\. averaging_preset='kaddour2022' samples "
    r'once per epoch\.$',
  ):
    Lawa(preset='kaddour2022').default_every(100, None)
  with pytest.raises(
    ValueError,
    match=r'^Missing every\. Lawa\(window=3\) averages samples that are some '
    r'steps apart; give every, or total_steps for a sample each 0\.2 % of it',
  ):
    Lawa(window=3).default_every(None, None)
