"""Literal values and messages of schemes and schedules.

Without these tests, mutants of them survived.
"""

import re

import pytest

from weightavg.learning_rate import factor, factor_at
from weightavg.schemes import (
  Auto,
  Ema,
  Lawa,
  Polynomial,
  Raw,
  Recursive,
  ScheduleFree,
  Scheme,
)


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


def test_the_raw_weights_are_the_last_sample():
  assert Raw().weights(1) == [1.0]
  assert Raw().weights(3) == [0.0, 0.0, 1.0]


def test_schedule_free_weighs_by_powers_of_the_step():
  scheme = ScheduleFree(step_power=2.0)
  assert scheme.weights(3) == [1 / 14, 4 / 14, 9 / 14]
  assert scheme.coefficient(3) == 9 / 14
  assert scheme.sample_weight(3, largest_rate=0.5) == 9 * 0.25
  assert scheme.sample_weight(3, largest_rate=2.0) == 9 * 4.0


def test_each_step_is_a_sample_of_an_unknown_budget():
  assert Polynomial().default_every(None, 10) == 1
  assert Polynomial().default_every(1499, 10) == 3
  assert Polynomial().default_every(10, None) == 1


def test_probes_are_renewed_in_a_fraction_of_the_budget():
  assert Auto(probe_every=0.25).probe_every_steps(10) == 2
  assert Auto(probe_every=0.25).probe_every_steps(11) == 3
  assert Auto(probe_every=0.01).probe_every_steps(10) == 1


def test_a_scheme_shows_what_is_given():
  text = "Auto(candidates='ema 0.1', probe_every=0.02, probe_memory=0.75)"
  assert repr(Auto('ema 0.1')) == text


def test_candidates_may_be_schemes():
  given = [Ema(horizon=0.1), Raw()]
  scheme = Auto(given)
  given.clear()
  assert scheme.candidates == scheme.schemes == (Ema(horizon=0.1), Raw())
  assert scheme.names == ('Ema(horizon=0.1)', 'Raw()')
  assert hash(scheme) == hash(Auto((Ema(horizon=0.1), Raw())))


@pytest.mark.parametrize(
  ('candidates', 'why'),
  [
    (
      'raw, sma 1',
      "Unknown candidate 'sma 1'. Must be raw, lawa HORIZON, ema HORIZON or "
      'polynomial POWER, separated by commas.',
    ),
    ('raw, raw', "Candidate 'raw' is given twice."),
    ('raw 3', "raw takes no argument: '3'."),
    ('ema inf', "The horizon of ema is 'inf'. Must be in (0, 1]."),
    ('raw', 'Must name at least one average.'),
    (('ema',), "'ema' is not a single average."),
    (
      (Ema(0.5), Raw(), Ema(0.50)),
      "Candidate 'Ema(decay=0.5)' is given twice.",
    ),
    ((Auto('ema 0.1'),), f'{Auto("ema 0.1")!r} is not a single average.'),
  ],
)
def test_messages_about_candidates_are_whole(candidates, why):
  message = f'Invalid averaging_candidates={candidates!r}. {why}'
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    Auto(candidates)


def test_a_horizon_has_neither_a_coefficient_nor_a_size():
  message = r'^resolved\(\) gives the decay of a horizon$'
  with pytest.raises(AssertionError, match=message):
    Ema(horizon=0.1).coefficient(1)
  message = r'^resolved\(\) gives the window of a horizon$'
  with pytest.raises(AssertionError, match=message):
    _ = Lawa(horizon=0.1).size


@pytest.mark.parametrize(
  ('base', 'name'),
  [
    (Scheme, 'weights'),
    (Scheme, 'stored'),
    (Recursive, 'coefficient'),
  ],
)
def test_what_a_scheme_lacks_is_named(base, name):
  class Bare(base):
    pass

  with pytest.raises(NotImplementedError, match=rf'^Bare\.{name}$'):
    getattr(Bare(), name)(1)


def test_an_integer_is_the_float_of_its_value():
  # States are compared by the texts of their schemes.
  assert str(Polynomial(power=4)) == str(Polynomial(power=4.0))
  assert str(Ema(decay=0)) == str(Ema(decay=0.0))
