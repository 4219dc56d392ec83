"""Training at an average: its configuration."""

import pytest
from primal_runs import contents, nadamw, network, saved, train
from tensors import assert_same_by_name

from weightavg import AveragingConfig, Ema
from weightavg.pytorch import Averager


def test_a_point_gives_the_interpolation():
  config = AveragingConfig.from_point(
    averaging_scheme='ema', averaging_horizon=0.1, averaging_interpolation=0.9
  )
  averager = Averager.from_config(network(), config, budget=1000)
  assert averager.interpolation == 0.9
  # Each step is a sample: 10 % of 1000 steps are 100 samples.
  assert averager.sampling.every == 1
  assert averager.scheme == Ema(decay=0.99)


def test_the_schedule_free_point_has_an_interpolation_of_its_own():
  config = AveragingConfig.from_point(averaging_scheme='schedule_free')
  averager = Averager.from_config(network(), config, budget=1000)
  assert (averager.interpolation, averager.sampling.every) == (0.9, 1)


@pytest.mark.parametrize(
  ('point', 'message'),
  [
    (
      {'averaging_scheme': 'lawa'},
      r'interpolation=0\.9\. Train',
    ),
    (
      {'averaging_scheme': 'auto'},
      r'interpolation=0\.9\. Train',
    ),
    ({'averaging_scheme': 'none'}, 'It has no effect with'),
    ({'averaging_interpolation': 1.0}, r'averaging_interpolation=1\.0'),
    ({'averaging_placement': 'cpu'}, "averaging_placement='cpu'. Must be dev"),
  ],
)
def test_points_are_checked(point, message):
  values = {'averaging_scheme': 'ema', 'averaging_interpolation': 0.9} | point
  with pytest.raises(ValueError, match=message):
    AveragingConfig.from_point(**values)


def test_a_horizon_follows_a_budget_that_is_planned_anew():
  config = AveragingConfig.from_point(
    averaging_scheme='ema', averaging_horizon=0.1, averaging_interpolation=0.9
  )
  runs = []
  for _ in range(2):
    model = network()
    averager = Averager.from_config(model, config, budget=1000)
    runs.append((model, nadamw(model.parameters()), averager))
  run, fresh = runs
  train(*run, range(3))
  for _, _, averager in runs:
    averager.resample(config.sampling(500), config.scheme_in(500))
  # 10 % of 500 steps are 50 samples.
  assert run[2].scheme == Ema(decay=0.98)
  train(*run, [3])
  for part, state in zip(fresh, saved(*run), strict=True):
    part.load_state_dict(state)
  for one in runs:
    train(*one, [4])
  assert_same_by_name(contents(run[0]), contents(fresh[0]))
  unwatched = Averager.from_config(network(), config, budget=1000)
  with pytest.raises(ValueError, match=r'saved with decay=0\.98, this'):
    unwatched.load_state_dict(run[2].state_dict())
