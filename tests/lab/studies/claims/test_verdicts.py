"""Each claim finds the effect that was typed into its results."""

import math

import pytest
from claim_results import measured, typed
from study_runs import curve, result

from lab.studies.claims import (
  averages,
  runs,
  statistics,
)
from lab.studies.claims.speed import best_horizon


@pytest.mark.parametrize(
  ('arrives', 'verdict', 'median'),
  [
    (40, statistics.HOLDS, 0.5),
    (80, statistics.UNDECIDED, 1.0),
    (96, statistics.FAILS, 1.2),
    # As if at twice T.
    (None, statistics.FAILS, 2.5),
  ],
)
@pytest.mark.parametrize('name', 'ac')
def test_steps_to_target(name, arrives, verdict, median):
  row = measured(name, lambda run: typed(run, {'raw': 80, '*': arrives}))
  assert row['verdict'] == verdict
  assert (row['seeds'], len(row['workloads'])) == (5, 4)
  first = row['parts'][0]
  assert first['median'] == first['low'] == first['high'] == median
  assert first['runs'] == 20
  assert row['command'] == f'python -m lab.studies claims --only={name}'


def test_on_every_workload_is_more_than_in_the_median():
  def result_of(run):
    late = run.workload == 'stdlib_lm' and run.seed < 3
    return typed(run, {'raw': 80, '*': 90 if late else 40})

  row = measured('a', result_of)
  overall, each = row['parts'][:2]
  assert (overall['median'], overall['on_each']) == (0.5, False)
  assert each['on_each']
  assert each['verdict'] != statistics.HOLDS


def test_seconds_count_the_averages_own():
  row = measured('b', lambda run: typed(run, {'raw': 80, '*': 60}))
  assert [part['median'] for part in row['parts']] == [0.75, 0.75]


def horizon_arrival(best):
  """Arrivals that are earliest at a horizon and late at both ends."""
  arrivals = {'raw': 90}
  for horizon in averages.CADENCE:
    at = 40 + 20 * abs(math.log10(horizon / best))
    for scheme in ('ema', 'lawa'):
      arrivals[averages.name_of(scheme, horizon)] = 2 * round(at / 2)
  return arrivals


def test_the_best_horizon():
  good = measured('d', lambda run: typed(run, horizon_arrival(0.01)))
  assert good['parts'][0]['median'] == pytest.approx(0.01)
  assert good['parts'][0]['verdict'] == statistics.HOLDS
  long = measured('d', lambda run: typed(run, horizon_arrival(0.2)))
  assert long['parts'][0]['median'] == pytest.approx(0.2)
  assert long['verdict'] == statistics.FAILS
  assert best_horizon({0.01: 0.7, 0.04: 0.7, 0.1: 0.8}) == pytest.approx(0.02)


@pytest.mark.parametrize(
  ('final', 'verdict'),
  [
    (0.02, statistics.HOLDS),
    (0.1, statistics.HOLDS),
    (0.9, statistics.FAILS),
  ],
)
def test_the_final_metric_is_judged_in_spreads_over_seeds(final, verdict):
  def result_of(run):
    finals = {'raw': 0.1 + 0.01 * run.seed}
    for name in ('ema 1 %', 'lawa 1 %'):
      finals[name] = final + 0.01 * run.seed
    return typed(run, {'*': 50}, finals)

  row = measured('f', result_of)
  assert row['verdict'] == verdict
  # Five seeds 0.01 apart have a spread of 0.0158.
  spread = 0.01 * math.sqrt(2.5)
  assert row['parts'][0]['median'] == pytest.approx((0.1 - final) / spread)


def schedule_of(run):
  if run.submission == runs.INVERSE_SQRT:
    return runs.INVERSE_SQRT
  return run.point.get('schedule', 'cosine')


def by_schedule(run, values):
  """Values at the end: of the raw weights and of all averages, by schedule."""
  raw, average = values[schedule_of(run)]
  finals = dict.fromkeys(run.follows['candidates'], average + 0.01 * run.seed)
  return typed(run, {'*': 50}, finals | {'raw': raw + 0.01 * run.seed})


ANNEALED = {
  'cosine': (0.2, 0.2),
  'cosine_to_half': (0.3, 0.24),
  'constant': (0.5, 0.3),
  runs.INVERSE_SQRT: (0.4, 0.3),
}


@pytest.mark.parametrize('name', 'gin')
def test_claims_about_annealing_hold_where_decay_does_the_averages_work(name):
  row = measured(name, lambda run: by_schedule(run, ANNEALED))
  assert row['verdict'] == statistics.HOLDS
  flat = dict.fromkeys(ANNEALED, (0.2, 0.1))
  row = measured(name, lambda run: by_schedule(run, flat))
  assert row['verdict'] == (
    statistics.FAILS if name == 'i' else statistics.UNDECIDED
  )


@pytest.mark.parametrize(
  ('average', 'verdict'),
  [(0.3, statistics.HOLDS), (0.7, statistics.FAILS)],
)
def test_long_runs_track_shorter_ones(average, verdict):
  """Raw 0.8 along the long run; a shorter run ends at 0.2."""

  def result_of(run):
    if run.length == 1.0:
      steps = range(2, 102, 2)
      curves = {
        name: [[s, s / 10, 0.8 if name == 'raw' else average] for s in steps]
        for name in run.follows['candidates']
      }
      return result(curves, run.workload, run.seed)
    return typed(run, {'*': 50}, {'raw': 0.2})

  row = measured('h', result_of)
  assert row['verdict'] == verdict
  assert row['parts'][0]['median'] == pytest.approx((0.8 - average) / 0.6)
  texts = [part['text'] for part in row['parts'] if part['decides']]
  assert [text.split(' at ')[1][:4] for text in texts] == [
    '25 %', '50 %', '75 %',
  ]  # fmt: skip


@pytest.mark.parametrize(
  ('constant', 'verdict'),
  [(0.2, statistics.HOLDS), (0.9, statistics.FAILS)],
)
def test_anytime_schedules_are_compared_at_every_budget(constant, verdict):
  values = ANNEALED | {
    'constant': (0.9, constant),
    runs.INVERSE_SQRT: (0.9, 0.95),
  }

  def result_of(run):
    found = by_schedule(run, values)
    if schedule_of(run) != 'cosine':
      # As good all the way.
      for points in found['curves'].values():
        for point in points:
          point[2] = points[-1][2]
    return found

  row = measured('o', result_of)
  assert row['verdict'] == verdict
  deciding = [part for part in row['parts'] if part['decides']]
  assert [part['budget'] for part in deciding] == [0.25, 0.5, 0.75, 1.0]
  assert {part['method'].split()[0] for part in deciding} == {'constant'}


@pytest.mark.parametrize(
  ('cost', 'verdict'), [(0.004, statistics.HOLDS), (0.02, statistics.FAILS)]
)
def test_the_cost_of_a_step(cost, verdict):
  def result_of(run):
    names = run.follows['candidates']
    # A curve of 100 steps has 10 s.
    seconds = {name: 0.0 if name == 'raw' else 10 * cost for name in names}
    return typed(run, {'*': 50}, averaging_seconds=seconds)

  row = measured('j', result_of)
  assert row['verdict'] == verdict
  assert row['parts'][0]['median'] == pytest.approx(cost)


def kaddour(run, recomputed):
  """LAWA sooner than all others; an early average worse than raw weights."""
  lawa = averages.window(6)
  arrivals = {
    'raw': 50,
    lawa: 20,
    averages.window(16): 30,
    averages.window(32): 40,
    averages.window(6, 'ema'): 24,
    averages.UNIFORM: 44,
  }
  found = typed(run, arrivals)
  for name, points in found['curves'].items():
    for point in points[:5]:
      point[2] = 0.95 if name == 'raw' else 1.5
    # At the end the raw weights are the first: that is not the middle.
    for point in points[-10 if name == 'raw' else -2 :]:
      point[2] = 0.08
  if 'recomputed' in run.follows:
    copy = [[step, s, v * recomputed] for step, s, v in found['curves'][lawa]]
    found['curves'][f'{lawa} {averages.RECOMPUTED}'] = copy
    twice = [[step, s, 2 * v] for step, s, v in found['curves'][lawa]]
    found['curves'][f'{lawa} {averages.CURRENT}'] = twice
  return found


def test_the_statements_about_epochs_are_parts_of_one_claim():
  row = measured('k', lambda run: kaddour(run, 1.0))
  assert row['verdict'] == statistics.HOLDS
  by_text = {part['text']: part['median'] for part in row['parts']}
  assert by_text['steps to the middle, k = 32 over k = 6'] == 2.0
  batch_norm = "BatchNorm: gain by averaged over the live model's statistics"
  assert by_text[batch_norm] == pytest.approx(0.5)
  row = measured('k', lambda run: kaddour(run, 0.9))
  # Recomputed statistics are 10 % better: a large effect.
  assert row['verdict'] == statistics.FAILS
  (failed,) = [
    p for p in row['parts'] if p['decides'] and p['verdict'] == statistics.FAILS
  ]
  assert 'recomputed' in failed['text']
  assert failed['median'] == pytest.approx(0.1)
  assert [*failed['by_workload']] == ['glyph_resnet']


@pytest.mark.parametrize(
  ('slow', 'verdict'), [(60, statistics.HOLDS), (40, statistics.FAILS)]
)
def test_lawa_against_lookahead(slow, verdict):
  def result_of(run):
    return typed(
      run, {'raw': slow if run.submission == 'lookahead' else 80, '*': 50}
    )

  row = measured('l', result_of)
  assert row['verdict'] == verdict
  assert row['parts'][0]['median'] == pytest.approx(50 / slow)


def test_averages_that_train_are_compared_with_nadamw(monkeypatch):
  """With a submission that exists in place of those that may not."""
  monkeypatch.setattr(runs, 'PRIMAL', {'nadamw_ema': {}})

  def result_of(run):
    finals = dict.fromkeys(run.follows['candidates'], 0.1 + 0.01 * run.seed)
    found = typed(run, {'raw': 80, '*': 60}, finals)
    if run.submission == 'nadamw_ema':
      good = run.point['learning_rate'] > first_rate(run)
      shown = curve(40, first=2)
      shown[-1][2] = (0.05 if good else 0.4) + 0.01 * run.seed
      found['curves'][averages.EVALUATED] = shown
    return found

  def first_rate(run):
    return 1.5 * runs.tuned(run.workload, 0).point['learning_rate']

  row = measured('m', result_of)
  assert row['verdict'] == statistics.HOLDS
  final, _, steps, with_average, top = row['parts']
  assert 'nadamw_ema at x2' in final['text']
  # The spread is that of five seeds, 0.0158, also where a claim has three.
  spread = 0.01 * math.sqrt(2.5)
  assert final['median'] == pytest.approx(0.05 / spread)
  assert final['runs'] == 12
  assert steps['median'] == pytest.approx(40 / 80)
  assert with_average['median'] == pytest.approx(40 / 60)
  assert top['median'] == pytest.approx(-0.05 / spread)


def noisy(run, sign):
  """Arrivals that are earlier at smaller batches and higher rates."""
  tuned = runs.tuned(run.workload, 0).point['learning_rate']
  noise = math.log2(run.point['learning_rate'] / tuned / run.batch_factor)
  return typed(run, {'raw': 60, '*': 40 - sign * 4 * round(noise)})


def test_the_gain_grows_with_the_noise():
  row = measured('noise', lambda run: noisy(run, 1))
  assert row['verdict'] == statistics.HOLDS
  deciding = [part for part in row['parts'] if part['decides']]
  assert [part['median'] for part in deciding] == pytest.approx([16 / 60] * 2)
  curves = {
    (part['axis'], part['factor']): part['median']
    for part in row['parts']
    if part.get('average') == 'best'
  }
  assert curves['batch size', 0.25] == pytest.approx(1 - 32 / 60)
  assert curves['learning rate', 4.0] == pytest.approx(1 - 32 / 60)
  assert curves['length of training', 2.0] == pytest.approx(1 - 40 / 60)
  assert len(curves) == 14
  row = measured('noise', lambda run: noisy(run, -1))
  assert row['verdict'] == statistics.FAILS
