"""Any valid point constructs, any invalid one raises and names the key."""

import importlib
import json
import math

import fault_runs
import hypothesis
import pytest
from hypothesis import strategies as st

from weightavg.config_fields import REQUIRED, fields_by_key, in_interval
from weightavg.optimizers import Optimizer
from weightavg.schemes import SCHEMES, Scheme
from weightavg.submission_config import RegularizationConfig, SubmissionConfig

SUBMISSIONS = [n for n in fault_runs.submissions() if not n.endswith('_jax')]


def points(name):
  path = fault_runs.ROOT / 'tuning_search_spaces' / f'{name}.json'
  return json.loads(path.read_text())


def parts_of(name):
  """The optimizer that a submission's module imports, and its scheme."""
  module = importlib.import_module(f'submissions.{name}.submission')
  found = vars(module).values()
  (optimizer,) = (v for v in found if isinstance(v, Optimizer))
  schemes = [v for v in found if isinstance(v, type) and issubclass(v, Scheme)]
  scheme = schemes[0] if schemes else SCHEMES[name.partition('_')[2] or 'none']
  return optimizer, optimizer.config, scheme


def within(field):
  """Values that a field allows."""
  kind, allowed = field.metadata['kind'], field.metadata['allowed']
  if not isinstance(allowed, str):
    return st.sampled_from(allowed)
  low, high = (float(end) for end in allowed[1:-1].split(','))
  if kind is int:
    most = 10**6 if math.isinf(high) else int(high)
    return st.integers(int(low), most).filter(lambda v: in_interval(v, allowed))
  return st.floats(low, min(high, 1e30)).filter(
    lambda v: in_interval(v, allowed)
  )


def outside(field):
  """Values that a field does not allow: of another type, or out of range."""
  kind, allowed = field.metadata['kind'], field.metadata['allowed']
  wrong = [[], {}, math.nan, math.inf, -math.inf, -7, 'nonsense', b'']
  wrong += [True] if kind is not bool else [1]
  wrong += [1.5] if kind is int else []
  if kind is str:
    wrong = [v for v in wrong if v != 'nonsense' or allowed]
  return st.sampled_from(wrong)


def fields_of(name):
  _, config, _ = parts_of(name)
  return fields_by_key(config) | fields_by_key(RegularizationConfig)


@pytest.mark.parametrize('name', SUBMISSIONS)
@hypothesis.settings(max_examples=40, database=None)
@hypothesis.given(data=st.data())
def test_any_valid_point_constructs(name, data):
  optimizer, _, scheme = parts_of(name)
  point = data.draw(st.sampled_from(points(name)))
  # Keys of the optimizer and of the training step, which exclude no other.
  free = {
    key: field
    for key, field in fields_of(name).items()
    if field.metadata['allowed'] is not None
  }
  chosen = data.draw(st.sets(st.sampled_from(sorted(free)), max_size=4))
  for key in chosen:
    point = point | {key: data.draw(within(free[key]))}
  config = SubmissionConfig.from_point(point, optimizer, scheme)
  for key in chosen:
    part = config.optimizer
    if key in fields_by_key(RegularizationConfig):
      part = config.regularization
    assert getattr(part, free[key].name) == point[key]


@pytest.mark.parametrize('name', SUBMISSIONS)
@hypothesis.settings(max_examples=40, database=None)
@hypothesis.given(data=st.data())
def test_any_invalid_point_names_the_key(name, data):
  optimizer, _, scheme = parts_of(name)
  point = data.draw(st.sampled_from(points(name)))
  fields = fields_of(name)
  key = data.draw(st.sampled_from(sorted(fields)))
  bad = point | {key: data.draw(outside(fields[key]))}
  with pytest.raises(ValueError, match=rf'Invalid {key}='):
    SubmissionConfig.from_point(bad, optimizer, scheme)


@pytest.mark.parametrize('name', SUBMISSIONS)
@hypothesis.settings(max_examples=20, database=None)
@hypothesis.given(data=st.data())
def test_unknown_and_missing_keys_are_named(name, data):
  optimizer, config, scheme = parts_of(name)
  point = data.draw(st.sampled_from(points(name)))
  unknown = data.draw(st.from_regex('[a-z]{3,9}_[xyz]', fullmatch=True))
  with pytest.raises(ValueError, match=f'Invalid hyperparameter {unknown}='):
    SubmissionConfig.from_point(point | {unknown: 1}, optimizer, scheme)
  required = [
    key for key, f in fields_by_key(config).items() if f.default is REQUIRED
  ]
  key = data.draw(st.sampled_from(required))
  if key not in optimizer.defaults:
    less = {k: v for k, v in point.items() if k != key}
    with pytest.raises(ValueError, match=f'Missing hyperparameter {key}'):
      SubmissionConfig.from_point(less, optimizer, scheme)
