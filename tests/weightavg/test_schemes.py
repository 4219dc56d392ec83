"""Weights of samples: sums, literal values, recursion against explicit sum."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from weightavg.averaging_config import AveragingConfig, samples_in
from weightavg.config_fields import config_field, fields_by_key
from weightavg.pytorch import Averager
from weightavg.sampling import Sampling
from weightavg.schemes import (
  SCHEMES,
  Auto,
  Ema,
  Lawa,
  Polynomial,
  Raw,
  Recursive,
  register,
)

ONE = st.one_of(
  st.integers(1, 20).map(Lawa),
  st.floats(0.0, 0.999).map(Ema),
  st.floats(0.0, 20.0).map(Polynomial),
)


@given(ONE, st.integers(1, 60))
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
  assert list(Sampling(every=4).steps(12)) == [4, 8, 12]


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 60))
def test_steps_lists_what_is_sampled(every, start, last):
  sampling = Sampling(every, start)
  listed = [s for s in range(1, last + 1) if sampling.is_sampled(s)]
  assert list(sampling.steps(last)) == listed


@pytest.mark.parametrize(
  ('fraction', 'budget', 'every', 'samples'),
  [
    (0.01, 10_000, 20, 5),
    (0.1, 100, 1, 10),
    (0.01, 749, 1, 7),
    (0.01, 751, 2, 4),
    (0.001, 1000, 10, 1),
  ],
)
def test_a_horizon_holds_the_samples_of_its_steps(
  fraction, budget, every, samples
):
  assert samples_in(fraction, budget, every) == samples


def test_the_default_horizon_gives_the_papers_window_and_decay():
  assert Lawa().resolved(lambda _: 5) == Lawa(window=5)
  assert Ema().resolved(lambda _: 5) == Ema(decay=0.8)


def test_a_long_run_is_not_listed():
  # As a list this would take 4 GB.
  assert len(Sampling(every=1).steps(5 * 10**8)) == 5 * 10**8


def spoken(scheme):
  """A scheme with a length, if it has fields for one."""
  given = {
    'decay': 0.9,
    'window': 3,
    'power': 2.0,
    'candidates': 'raw, ema 0.5, lawa 0.5',
  }
  names = {field.name for field in dataclasses.fields(scheme)}
  return scheme(**{k: v for k, v in given.items() if k in names})


@pytest.mark.parametrize('name', SCHEMES)
def test_every_scheme_resolves_and_weighs_each_of_its_parts(name):
  scheme = spoken(SCHEMES[name]).resolved(lambda fraction: 4)
  assert scheme.name == name
  for part in scheme.parts:
    for count in (1, 2, 7):
      assert sum(part.weights(count)) == pytest.approx(1.0, abs=1e-14)
  assert scheme.stored(0) == 0
  assert scheme.stored(7) == sum(part.stored(7) for part in scheme.parts)


@pytest.mark.parametrize('name', SCHEMES)
def test_every_field_has_a_key_and_explains_itself(name):
  for key, field in fields_by_key(SCHEMES[name]).items():
    assert field.metadata['help']
    point = AveragingConfig.from_point(averaging_scheme=name, **{key: None})
    assert point == AveragingConfig.from_point(averaging_scheme=name)


def test_fields_are_checked_under_their_names():
  with pytest.raises(ValueError, match=r'Invalid decay=1.0. Must be in \[0, 1'):
    Ema(1.0)
  with pytest.raises(ValueError, match='Contradicting horizon and decay'):
    Ema(0.9, horizon=0.1)


def test_a_scheme_of_ones_own_needs_a_class_and_nothing_else():
  @register
  @dataclasses.dataclass(frozen=True)
  class Halving(Recursive):
    name = candidate = 'halving'
    rate: float = config_field(
      0.5, float, '(0, 1]', 'weight of a sample', key='halving_rate'
    )

    def coefficient(self, count):
      return 1.0 if count == 1 else self.rate

  try:
    config = AveragingConfig.from_point(
      averaging_scheme='halving', halving_rate=0.25
    )
    assert config.resolve(1000) == (Sampling(2), Halving(0.25))
    with pytest.raises(ValueError, match='only with halving'):
      AveragingConfig.from_point(averaging_scheme='ema', halving_rate=0.25)
    several = Auto('raw, halving')
    assert several.schemes == (Raw(), Halving())
    model = nn.Linear(1, 1, bias=False)
    averager = Averager.from_config(model, config, budget=500)
    for value in (1.0, 5.0):
      model.weight.data.fill_(value)
      averager.update()
    with averager.evaluating():
      assert model.weight.item() == 2.0
    with pytest.raises(ValueError, match='has it already'):
      register(type('Other', (Recursive,), {'name': 'halving'}))
    with pytest.raises(ValueError, match='Missing name of Nameless'):
      register(type('Nameless', (Recursive,), {}))
  finally:
    del SCHEMES['halving']


def test_importing_an_averager_loads_no_optimizer():
  """Nor what of PyTorch takes as long as PyTorch itself."""
  code = (
    'import sys; import weightavg.pytorch.averager; '
    "print([m for m in sys.modules if 'optimizers' in m or 'shampoo' in m"
    " or m.startswith(('lab', 'submissions', 'torch._dynamo',"
    " 'torch.distributed.tensor', 'torch.distributed.fsdp'))])"
  )
  found = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert found.stdout.strip().splitlines()[-1] == '[]'


def test_the_pure_half_imports_no_framework():
  code = (
    'import sys; import weightavg.submission_config, weightavg.workloads; '
    'import weightavg.optimizers.nadamw, weightavg.optimizers.shampoo; '
    "print([m for m in ('torch', 'jax', 'algoperf') if m in sys.modules])"
  )
  found = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert found.stdout.strip() == '[]'
