"""Points of search spaces: defaults, ranges, contradictions, messages."""

import collections
import dataclasses
import json
import logging
import pathlib
import re

import numpy as np
import pytest

from weightavg.averaging_config import AveragingConfig, point_fields
from weightavg.pytorch.build_nadamw import (
  NADAMW,
  NADAMW_PRIMAL,
  NADAMW_SCHEDULE_FREE,
)
from weightavg.pytorch.build_shampoo import (
  SHAMPOO,
  SHAMPOO_PRIMAL,
  SHAMPOO_SCHEDULE_FREE,
)
from weightavg.sampling import Sampling
from weightavg.schemes import SCHEMES, Ema, Lawa, Polynomial, Raw, ScheduleFree
from weightavg.submission_config import SubmissionConfig, keys_by_part

ROOT = pathlib.Path(__file__).parents[2]
SCHEME_OF = {
  'nadamw': 'none',
  'nadamw_lawa': 'lawa',
  'nadamw_ema': 'ema',
  'nadamw_polynomial': 'polynomial',
  'nadamw_primal': 'ema',
  'nadamw_schedule_free': 'schedule_free',
  'shampoo_primal': 'ema',
  'shampoo_schedule_free': 'schedule_free',
  'nadamw_auto': 'auto',
  'shampoo': 'none',
  'shampoo_lawa': 'lawa',
  'shampoo_ema': 'ema',
  'shampoo_auto': 'auto',
  'nadamw_jax': 'none',
  'nadamw_lawa_jax': 'lawa',
  'nadamw_ema_jax': 'ema',
  'nadamw_auto_jax': 'auto',
  'nadamw_primal_jax': 'ema',
  'nadamw_schedule_free_jax': 'schedule_free',
}


def parse(point, scheme='ema'):
  return SubmissionConfig.from_point(
    {'learning_rate': 1e-3} | point, NADAMW, SCHEMES[scheme]
  )


@pytest.mark.parametrize(
  ('scheme', 'expected'),
  [
    ('none', Raw()),
    ('lawa', Lawa(5)),
    ('ema', Ema(0.8)),
    ('polynomial', Polynomial(4.0)),
  ],
)
def test_defaults_resolve_to_the_papers_setting(scheme, expected):
  sampling, resolved = AveragingConfig.from_point(
    averaging_scheme=scheme
  ).resolve(10_000)
  assert sampling == Sampling(every=20, start=0)
  assert resolved == expected


def test_short_budgets_sample_every_step():
  sampling, _ = AveragingConfig.from_point(averaging_scheme='ema').resolve(100)
  assert sampling.every == 1


def test_cadence_in_steps_keeps_the_horizon():
  config = AveragingConfig.from_point(
    averaging_scheme='lawa', averaging_every_steps=10, averaging_horizon=0.05
  )
  # 5 % of 1000 steps is 50 steps: five samples, ten steps apart.
  assert config.resolve(1000) == (Sampling(10), Lawa(5))


def test_start_is_a_fraction_of_the_budget():
  config = AveragingConfig.from_point(
    averaging_scheme='ema', averaging_start=0.25
  )
  assert config.resolve(1000)[0].start == 250


def test_kaddours_preset_samples_once_per_epoch():
  config = AveragingConfig.from_point(
    averaging_scheme='lawa', averaging_preset='kaddour2022'
  )
  assert config.resolve(10_000, steps_per_epoch=391) == (
    Sampling(391),
    Lawa(6),
  )
  with pytest.raises(ValueError, match='Missing steps_per_epoch'):
    config.resolve(10_000)


@pytest.mark.parametrize(
  ('kwargs', 'epoch'),
  [
    ({'averaging_scheme': 'lawa', 'averaging_preset': 'kaddour2022'}, 101),
    ({'averaging_scheme': 'ema', 'averaging_every_steps': 101}, None),
    (
      {
        'averaging_scheme': 'auto',
        'averaging_every_steps': 60,
        'averaging_start': 0.7,
      },
      None,
    ),
  ],
)
def test_a_run_without_a_sample_is_refused(kwargs, epoch):
  config = AveragingConfig.from_point(**kwargs)
  with pytest.raises(ValueError, match='is none in a budget of 100'):
    config.resolve(100, epoch)
  assert config.resolve(1000, epoch)


@pytest.mark.parametrize(
  ('kwargs', 'warns'),
  [
    ({'averaging_scheme': 'ema'}, True),
    ({'averaging_scheme': 'auto'}, True),
    ({'averaging_scheme': 'lawa', 'lawa_window': 1}, False),
    ({'averaging_scheme': 'polynomial'}, False),
    ({'averaging_scheme': 'none'}, False),
  ],
)
def test_a_horizon_of_one_sample_is_said(kwargs, warns, caplog):
  cadence = {'averaging_every_steps': 10}
  if kwargs['averaging_scheme'] == 'none':
    cadence = {}
  with caplog.at_level(logging.WARNING, logger='absl'):
    AveragingConfig.from_point(**kwargs, **cadence).resolve(1000)
  assert ('holds one sample' in caplog.text) == warns


@pytest.mark.parametrize(
  ('point', 'message'),
  [
    (
      {'averaging_horizon': 1.5},
      'Invalid averaging_horizon=1.5. Must be in (0, 1] or null.',
    ),
    ({'averaging_horizon': 0}, 'Invalid averaging_horizon=0.'),
    ({'averaging_horizon': float('nan')}, 'Invalid averaging_horizon=nan.'),
    (
      {'averaging_start': 1.0},
      'Invalid averaging_start=1.0. Must be in [0, 1)',
    ),
    (
      {'averaging_every_steps': 2.5},
      'Invalid averaging_every_steps=2.5. Must ',
    ),
    ({'ema_decay': True}, 'Invalid ema_decay=True.'),
    (
      {'learning_rate': '0.1'},
      "Invalid learning_rate='0.1'. Must be in (0, inf)",
    ),
    ({'learning_rate': None}, 'Invalid learning_rate=None.'),
    ({'learning_rate': 10**400}, 'Invalid learning_rate=1000'),
    ({'beta2': 1.0}, 'Invalid beta2=1.0. Must be in [0, 1).'),
    (
      {'schedule': 'linear'},
      'Must be one of cosine, cosine_to_half, constant.',
    ),
    ({'averaging_horizn': 0.1}, 'Invalid hyperparameter averaging_horizn=0.1.'),
    ({'averaging_scheme': 'lawa'}, "This submission averages by 'ema'."),
    ({'lawa_window': 5}, 'Invalid lawa_window=5. It has no effect with'),
    (
      {'averaging_every': 0.1, 'averaging_every_steps': 3},
      'Contradicting averaging_every and averaging_every_steps.',
    ),
    (
      {'averaging_horizon': 0.01, 'ema_decay': 0.8},
      'Contradicting averaging_horizon and ema_decay. Give one of them.',
    ),
    ({'grad_clip': 0.0}, 'Invalid grad_clip=0.0. Must be in (0, inf) or null.'),
    ({'dropout_rate': 1}, 'Invalid dropout_rate=1. Must be in [0, 1) or null.'),
  ],
)
def test_bad_points_are_refused_in_one_line(point, message):
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    parse(point)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('scheme', ['ema', Ema, None])
def test_what_is_no_scheme_is_refused(scheme):
  with pytest.raises(ValueError, match=r'Must be a scheme such as Ema'):
    AveragingConfig(scheme=scheme)


def test_a_scheme_is_named_by_a_string():
  with pytest.raises(ValueError, match=r"Invalid averaging_scheme=\['ema'\]\."):
    AveragingConfig.from_point(averaging_scheme=['ema'])


def test_a_length_in_a_point_takes_the_place_of_the_submissions_own():
  point = {'learning_rate': 0.1, 'ema_decay': 0.5}
  config = SubmissionConfig.from_point(point, NADAMW_PRIMAL, Ema)
  assert config.averaging.scheme == Ema(decay=0.5)
  config = SubmissionConfig.from_point(
    {'learning_rate': 0.1}, NADAMW_PRIMAL, Ema
  )
  assert config.averaging.scheme == Ema(horizon=0.03)


def test_schedule_free_leaves_the_dropout_to_the_workload():
  config = SubmissionConfig.from_point(None, NADAMW_SCHEDULE_FREE, ScheduleFree)
  assert config.regularization.model_options == {}


def test_missing_learning_rate_is_named():
  with pytest.raises(ValueError, match='Missing hyperparameter learning_rate'):
    SubmissionConfig.from_point({}, NADAMW, Raw)


def test_averaging_knobs_without_averaging_are_refused():
  with pytest.raises(ValueError, match="averaging_scheme='none'"):
    parse({'averaging_horizon': 0.1}, 'none')


def test_preset_excludes_other_horizons():
  for extra in ({'averaging_every': 0.1}, {'lawa_window': 3}):
    with pytest.raises(ValueError, match='Contradicting'):
      parse({'averaging_preset': 'kaddour2022'} | extra, 'lawa')


def test_namedtuples_and_mappings_are_read_alike():
  point = collections.namedtuple('Hyperparameters', ['learning_rate'])(0.1)
  assert parse({'learning_rate': 0.1}) == SubmissionConfig.from_point(
    point, NADAMW, Ema
  )


def test_self_tuning_has_a_point_of_its_own_that_plans_with_the_clock():
  config = SubmissionConfig.from_point(None, NADAMW, Ema)
  assert config.schedule.planned_by == 'clock'
  assert config.schedule.budget(1000) == 1000


def test_the_key_of_the_clock_is_budget():
  point = {'learning_rate': 1e-3, 'budget': 'clock'}
  config = SubmissionConfig.from_point(point, NADAMW, Ema)
  assert config.schedule.planned_by == 'clock'
  with pytest.raises(
    ValueError, match="budget='hours'\\. Must be one of steps,"
  ):
    SubmissionConfig.from_point(point | {'budget': 'hours'}, NADAMW, Ema)


def test_the_cadence_of_another_budget():
  config = AveragingConfig.from_point(
    averaging_scheme='ema', averaging_start=0.5
  )
  assert config.sampling(10_000) == config.resolve(10_000)[0]
  assert config.sampling(4000) == Sampling(every=8, start=2000)


def test_configurations_cannot_be_changed():
  with pytest.raises(dataclasses.FrozenInstanceError):
    AveragingConfig().averaging_start = 0.5


def test_budget_follows_the_step_hint_factor():
  schedule = parse({'step_hint_factor': 0.6}).schedule
  assert schedule.budget(1000) == schedule.budget(np.int64(1000)) == 600


@pytest.mark.parametrize('hint', [None, 0, -5, 'many'])
def test_a_workload_without_a_step_hint_has_no_budget(hint):
  with pytest.raises(ValueError, match=rf'Invalid step_hint={hint!r} of the'):
    parse({}).schedule.budget(hint)


RATES = {
  'nadamw': [
    0.001308209823469072,
    0.0008445074561975979,
    0.001308209823469072,
    0.004958460849689891,
    0.0017486387539278373,
  ],
  'shampoo': [
    0.0017486387539278373,
    0.0014381744028656841,
    4.199449275251465,
    0.0012,
    0.001308209823469072,
  ],
}


TRAINED_AT_AN_AVERAGE = {
  'nadamw_primal': NADAMW_PRIMAL,
  'shampoo_primal': SHAMPOO_PRIMAL,
  'shampoo_schedule_free': SHAMPOO_SCHEDULE_FREE,
  'nadamw_schedule_free': NADAMW_SCHEDULE_FREE,
  'nadamw_primal_jax': NADAMW_PRIMAL,
  'nadamw_schedule_free_jax': NADAMW_SCHEDULE_FREE,
}


def search_space(name):
  path = ROOT / 'tuning_search_spaces' / f'{name}.json'
  points = json.loads(path.read_text())
  assert len(points) == 5
  for point in points:
    # The benchmark makes one namedtuple class of the first point.
    assert point.keys() == points[0].keys()
  return points


@pytest.mark.parametrize(
  'name', sorted(SCHEME_OF.keys() - TRAINED_AT_AN_AVERAGE.keys())
)
def test_search_spaces_hold_the_five_published_points(name):
  optimizer = NADAMW if name.startswith('nadamw') else SHAMPOO
  scheme = SCHEME_OF[name]
  points = search_space(name)
  assert [p['learning_rate'] for p in points] == RATES[optimizer.name]
  for point in points:
    config = SubmissionConfig.from_point(point, optimizer, SCHEMES[scheme])
    assert config.averaging.resolve(10_000) == AveragingConfig.from_point(
      averaging_scheme=scheme
    ).resolve(10_000)


@pytest.mark.parametrize('name', sorted(TRAINED_AT_AN_AVERAGE))
def test_spaces_that_train_at_an_average_have_no_momentum(name):
  optimizer, scheme = TRAINED_AT_AN_AVERAGE[name], SCHEMES[SCHEME_OF[name]]
  points = search_space(name)
  for point in points:
    config = SubmissionConfig.from_point(point, optimizer, scheme)
    assert config.averaging.interpolation == 0.9
    assert config.optimizer.one_minus_beta1 == 1.0
    # The defaults are those of the points.
    assert all(point[key] == value for key, value in optimizer.defaults.items())
    if scheme is ScheduleFree:
      memory = point.get('one_minus_beta2') or 1 - point['beta2']
      assert config.schedule.warmup_steps == round(2 / memory)
  if scheme is not ScheduleFree:
    assert [p['learning_rate'] for p in points] == RATES[optimizer.name]
    published = search_space(optimizer.name)
    for point, given in zip(points, published, strict=True):
      own = ('one_minus_beta1', 'one_minus_momentum')
      for key in given.keys() - set(own):
        assert point[key] == given[key]


def test_a_points_values_replace_the_optimizers_defaults():
  config = SubmissionConfig.from_point(
    {'learning_rate': 0.1, 'averaging_interpolation': 0.5},
    NADAMW_PRIMAL,
    Ema,
  )
  assert config.averaging.interpolation == 0.5
  assert config.optimizer.one_minus_beta1 == 1.0


def test_every_submission_has_its_search_space_tested():
  spaces = {p.stem for p in (ROOT / 'tuning_search_spaces').glob('*.json')}
  assert spaces == set(SCHEME_OF)


@pytest.mark.parametrize('optimizer', [NADAMW, SHAMPOO])
def test_every_key_explains_itself(optimizer):
  parts = keys_by_part(optimizer)
  for keys in parts.values():
    for field in keys.values():
      assert field.metadata['help']
  # A point is flat: no key may belong to two parts.
  assert sum(map(len, parts.values())) == len(set().union(*parts.values()))


def test_keys_of_all_schemes_are_known():
  assert {'lawa_window', 'ema_decay', 'averaging_power'} < set(point_fields())


def test_an_explicit_decay_is_per_step_unless_a_cadence_is_given():
  decay = {'averaging_scheme': 'ema', 'ema_decay': 0.999}
  sampling, scheme = AveragingConfig.from_point(**decay).resolve(100_000)
  assert (sampling, scheme) == (Sampling(1), Ema(0.999))
  sampling, _ = AveragingConfig.from_point(
    **decay, averaging_every=0.002
  ).resolve(100_000)
  assert sampling == Sampling(200)


@pytest.mark.parametrize(
  ('budget', 'every', 'window'), [(100, 1, 10), (749, 1, 75), (751, 2, 38)]
)
def test_the_horizon_is_the_one_asked_for_where_the_run_is_short(
  budget, every, window
):
  config = AveragingConfig.from_point(
    averaging_scheme='lawa', averaging_horizon=0.1
  )
  assert config.resolve(budget) == (Sampling(every), Lawa(window))
