"""The choice among averages: its runs, rows, tables and figures."""

import argparse
import math

import pytest
import torch
from study_runs import cells, curve, lines, result

from lab.run import validation
from lab.run.distributed import Context
from lab.run.settings import Settings
from lab.run.trial import TrialRun
from lab.studies import auto, repeated, unseen
from lab.studies.parts import choice_figures, choice_log, choosers
from lab.studies.parts.choice_tables import TUNED, Times
from lab.studies.parts.training import tuned_point
from lab.workloads import build_workload, click_dlrm

STEPS = 12
LOOKS = list(range(2, 101, 2))


def run(
  workload='w', seed=0, factor=1.0, schedule='cosine', chosen=(), **arrives
):
  """A run; `arrives` is when each candidate does, None is never."""
  names = {'raw': 'raw', 'ema': 'ema 0.01', 'poly': 'polynomial 4'}
  names |= {'auto': 'auto', 'one': 'auto, 1 batch'}
  choices = {'auto': [[step, 1] for step in LOOKS]}
  if 'one' in arrives:
    choices['auto, 1 batch'] = [
      [step, which] for step, which in zip(LOOKS, chosen, strict=False)
    ]
  return result(
    {names[key]: curve(when) for key, when in arrives.items()},
    workload,
    seed,
    learning_rate_factor=factor,
    schedule=schedule,
    choices=choices,
  )


def test_rows_say_when_each_candidate_arrives_and_what_was_chosen():
  rows = auto.rows_of(
    [run(raw=80, ema=None, poly=50, auto=60, one=90, chosen=[-1, 0, 1, 2])]
  )
  assert [r['candidate'] for r in rows] == [
    *('nadamw', 'ema 0.01', 'polynomial 4', 'auto', 'auto, 1 batch')
  ]
  assert [r['steps_to_target'] for r in rows] == [80, None, 50, 60, 90]
  assert [r['ratio_to_nadamw'] for r in rows] == [1, None, 0.625, 0.75, 1.125]
  assert [r['reached_at_first_look'] for r in rows] == [
    *(False, False, True, False, False)
  ]
  assert [r['share_of_raw'] for r in rows] == [None, None, None, 0.0, 0.5]
  assert {r['evaluated_every'] for r in rows} == {2}
  never = auto.rows_of([run(raw=None, ema=60, auto=60)])
  assert {row['ratio_to_nadamw'] for row in never} == {None}


# Two seeds at the tuned setting, one at the others. The best fixed candidate is
# at the tuned setting ema (72, between 70 and 74), then poly, raw, and none.
RUNS = [
  run(seed=0, raw=80, ema=70, poly=80, auto=72),
  run(seed=1, raw=82, ema=74, poly=None, auto=76),
  run(factor=2.0, raw=90, ema=88, poly=86, auto=90),
  run(schedule='constant', raw=94, ema=None, poly=None, auto=None),
  run(factor=0.5, raw=None, ema=None, poly=None, auto=None),
  run('v', raw=60, ema=50, poly=50, auto=50),
]
ROWS = auto.rows_of(RUNS)


def of_w(series):
  """The values of a series by setting, or setting and seed, of workload w."""
  return sorted(series[series.index.get_level_values(0) == 'w'])


def test_the_best_fixed_candidate_is_that_of_each_setting():
  times = Times(ROWS)
  assert times.best_fixed['w'].to_dict() == {
    (1.0, 'cosine'): 0.72,
    (2.0, 'cosine'): 0.86,
    (1.0, 'constant'): 0.94,
    (0.5, 'cosine'): math.inf,
  }
  # One arrives and the other does not: infinite; neither: left out.
  assert of_w(times.gaps('auto')) == [0.02, 0.04, math.inf]
  assert of_w(times.gaps('nadamw')) == [0.0, 0.04, 0.09]
  assert of_w(times.behind('auto', 'nadamw')) == [-0.08, -0.06, 0.0, math.inf]


def test_steps_are_medians_at_the_tuned_setting():
  table = auto.steps(ROWS)
  assert lines(table)[0] == [
    *('workload', 'seeds', 'NadamW', 'EMA 1 %', 'polynomial 4', 'auto'),
    'auto - best fixed',
  ]
  assert cells(table, 'w') == [
    *('2', '0.81', '0.72', 'not reached (1 of 2)', '0.74', '+0.02')
  ]
  # The first look is at half of T.
  assert cells(table, 'v') == ['1', '0.60', '≤ 0.50', '≤ 0.50', '≤ 0.50', '0']


def test_gaps_are_over_the_settings():
  table = auto.gaps(ROWS)
  assert lines(table)[0] == ['candidate', 'v', 'w', 'all']
  assert cells(table, 'auto') == [
    '0 / 0 / 1 of 1',
    '+0.04 / ∞ / 1 of 3',
    # The mean of the two in the middle.
    '+0.03 / ∞ / 2 of 4',
  ]
  assert cells(table, 'NadamW')[1] == '+0.04 / +0.09 / 1 of 3'
  nowhere = auto.rows_of([run(raw=None, ema=None, auto=None)])
  assert cells(auto.gaps(nowhere), 'auto') == ['–', '–']


def found(rows):
  """Return the finding and the verdict for each number to reach."""
  return [line[1:] for line in lines(auto.verdicts(rows))[1:]]


def test_misses_are_said():
  assert found(ROWS) == [
    ['at most +0.02 (w)', 'reached'],
    ['at most ∞; within it at 2 of 4 settings where any arrives', '**missed**'],
    ['at most ∞; within it in 4 of 5 runs where either arrives', '**missed**'],
    ['+0.02; earlier 0, same 1, later 3', '**missed**'],
  ]


def test_what_is_reached_is_said():
  ahead = [run(seed=s, raw=80, ema=74, auto=72) for s in range(3)]
  assert [row[-1] for row in found(auto.rows_of(ahead))] == ['reached'] * 4
  # No later than the default average is not ahead of it.
  tied = [run(seed=s, raw=80, ema=72, auto=72) for s in range(3)]
  assert [row[-1] for row in found(auto.rows_of(tied))] == [
    *('reached', 'reached', 'reached', '**missed**')
  ]


@pytest.mark.parametrize(
  ('when', 'best', 'late'),
  [(74, 'reached', 'reached'), (76, '**missed**', '**missed**')],
)
def test_the_limits_are_those_of_the_study(when, best, late):
  # Two hundredths behind the best; nothing or two behind NadamW.
  rows = auto.rows_of([run(raw=74, ema=72, auto=when)])
  assert [row[-1] for row in found(rows)][:3] == [best, best, late]


def test_nothing_is_claimed_where_nothing_arrives():
  rows = auto.rows_of([run(raw=None, ema=None, auto=None)])
  assert {row[-1] for row in found(rows)} == {'unknown'}


def test_other_rules_have_a_table_with_their_share_of_raw():
  runs = [
    run(seed=0, raw=80, ema=70, auto=72, one=80, chosen=[0, 0, 0, 1]),
    run(seed=1, raw=80, ema=70, auto=74, one=None, chosen=[0, 0]),
    run(schedule='constant', raw=80, ema=70, auto=74),
  ]
  rows = auto.rows_of(runs)
  table = auto.ablation(rows)
  assert lines(table)[0] == [
    *('workload', 'seeds', 'auto', 'auto, 1 batch', 'NadamW')
  ]
  assert cells(table, 'w') == [
    *('2', '0.73 (raw 0 %)', 'not reached (1 of 2) (raw 88 %)', '0.80')
  ]
  # A rule that does not choose everywhere has no line among the gaps.
  assert len(lines(auto.gaps(rows))) == 4
  assert len(lines(auto.gaps(auto.rows_of(runs[:2])))) == 5


def test_a_part_of_the_study_says_how_much_there_is():
  text = auto.extent(ROWS)
  assert text.startswith('6 runs at 5 settings')
  assert 'each with 1 to 2 seeds.' in text
  assert 'every 0.02 of T' in text
  assert 'each with 1 seed.' in auto.extent(auto.rows_of(RUNS[-1:]))
  # At no tuned setting: tables without lines.
  for _, table in auto.STUDY.tables.values():
    assert table(auto.rows_of(RUNS[2:3]))


def test_the_committed_rows_are_readable(tmp_path):
  rows = auto.STUDY.committed('auto.json')
  assert tuple(rows[0]) == auto.COLUMNS
  choices = auto.STUDY.committed('choices.json')
  assert set(auto.choices_of(RUNS)[0]) == set(choices[0])
  choice_figures.draw_steps(rows, tmp_path / 'auto.png')
  choice_figures.draw_choices(choices, tmp_path / 'choices.png')
  for name in ('auto.png', 'choices.png'):
    assert (tmp_path / name).stat().st_size > 10_000
  for study, file in ((unseen, 'unseen.json'), (repeated, 'repeated.json')):
    (own, *_) = study.STUDY.tables.values()
    assert own[0] == file
    assert len(lines(own[1](study.STUDY.committed(file)))) >= 1


def test_choices_are_by_evaluation_and_candidate():
  (first, *_) = auto.choices_of(RUNS)
  assert first['candidates'] == ['raw', 'ema 0.01', 'polynomial 4']
  assert first['choices']['auto'][:2] == [[2, 1], [4, 1]]
  runs = [
    {'budget_steps': 10, 'choices': {'auto': [[5, 1], [10, 0]]}},
    {'budget_steps': 20, 'choices': {'auto': [[10, -1]]}},
  ]
  # Shares are of all runs, also of those that are over.
  found = choice_figures.shares(
    [r | {'candidates': ['raw', 'x']} for r in runs]
  )
  assert found.index.tolist() == [0.5, 1.0]
  assert found.to_dict('list') == {'raw': [0.5, 0.5], 'x': [0.5, 0.0]}


def trainings(study, **changes):
  values = {option.name: option.values for option in study.STUDY.options}
  values |= {'workloads': ['click_dlrm'], 'seeds': [4], **changes}
  return study.STUDY.trainings(argparse.Namespace(**values))


def test_runs_have_their_rate_and_schedule_and_more_rules_when_tuned():
  runs = trainings(auto, seeds=[0, 1])
  assert len({run.name for run in runs}) == len(runs) == 18
  tuned = tuned_point('click_dlrm')
  given = [
    (r.point['learning_rate'] / tuned['learning_rate'], r.point['schedule'])
    for r in runs
  ]
  assert given[:3] == [(f, 'cosine') for f in (1.0, 0.5, 2.0)]
  assert {schedule for _, schedule in given} == set(auto.SCHEDULES)
  more = [set(auto.FURTHER_RULES) <= set(r.follows['rules']) for r in runs]
  assert more == [setting == TUNED for setting in given]
  assert [r.follows['to_the_end'] for r in runs] == [r.seed == 0 for r in runs]


def test_unseen_seeds_are_others_and_have_a_file_of_their_own():
  assert not set(unseen.STUDY.seeds) & set(auto.STUDY.seeds)
  assert [*unseen.STUDY.files] == ['unseen.json']
  assert len(trainings(unseen)) == 4


def test_several_batches_are_joined_leaf_by_leaf():
  def batch(*values):
    rows = torch.tensor(values)
    return {'inputs': {'a': rows}, 'targets': (rows + 1, rows + 2)}

  joined = choosers.joined([batch(1, 2), batch(3), batch(4)])
  assert joined['inputs']['a'].tolist() == [1, 2, 3, 4]
  assert [t.tolist() for t in joined['targets']] == [[2, 3, 4, 5], [3, 4, 5, 6]]
  assert isinstance(joined['targets'], tuple)


@pytest.fixture
def short(shrink):
  """A function that makes a run of twelve steps, evaluated after every two."""

  def apply(target=0.0):
    shrink(
      click_dlrm.Workload,
      steps=STEPS,
      eval_every_steps=2,
      target=target,
      size=64,
    )

  apply()
  return apply


def values_of(curves, name):
  return [[step, value] for step, _, value in curves[name]]


def test_autos_curve_is_that_of_the_submission_under_the_runner(
  short, tmp_path
):
  followed = trainings(auto)[0].execute(str(tmp_path / 'study'))
  settings = Settings(
    workload='click_dlrm',
    submission_path='submissions/nadamw_auto/submission.py',
    tuning_search_space=build_workload('click_dlrm').tuned_search_space,
    experiment_dir=str(tmp_path),
    experiment_name='alone',
    rng_seed=4,
    run_to_budget=True,
    save_checkpoints=False,
  )
  (trial,) = validation.prepare(settings, Context(), drawn_seed=0)
  directory = tmp_path / 'alone' / 'click_dlrm_pytorch' / 'trial_1'
  directory.mkdir(parents=True)
  alone = TrialRun(trial, {}).run()
  metric = f'validation/{trial.workload.target_metric_name}'
  expected = [[step, metrics[metric]] for step, metrics in alone.eval_results]
  assert [step for step, _ in expected] == [2, 4, 6, 8, 10, 12]
  # Curves begin at half of the budget.
  assert values_of(followed['curves'], 'auto') == expected[2:]
  assert values_of(followed['curves'], 'auto') != values_of(
    followed['curves'], 'raw'
  )
  # What the submission has logged is what the study has seen it choose.
  seen = choice_log.read(str(directory))
  names = list(seen[0].losses)
  assert followed['choices']['auto'] == [
    [choice.step, names.index(choice.shown)] for choice in seen
  ]
  assert {choice.shown for choice in seen} != {'raw'}
  for name in auto.RULES | auto.FURTHER_RULES:
    assert [s for s, _ in followed['choices'][name]] == [2, 4, 6, 8, 10, 12]
    assert {which for _, which in followed['choices'][name]} != {-1}, name


def test_a_run_ends_when_all_curves_have_come_to_the_target(short, tmp_path):
  short(target=99.0)
  _, other = trainings(auto, seeds=[0, 4], learning_rate_factors=(1.0,))[:2]
  found = other.execute(str(tmp_path))
  assert {tuple(c[0] for c in v) for v in found['curves'].values()} == {(6,)}
  assert [step for step, _ in found['choices']['auto']] == [2, 4, 6]


def test_each_rule_sees_its_probe(short, tmp_path, monkeypatch):
  short(target=99.0)
  sizes = []
  compare = choosers.choosing_step.compare_candidates

  def spy(workload, model, state, averager, batch, rng):
    sizes.append(len(batch['targets']))
    return compare(workload, model, state, averager, batch, rng)

  monkeypatch.setattr(choosers.choosing_step, 'compare_candidates', spy)
  trainings(auto)[0].execute(str(tmp_path))
  # The submission's own quarter of a batch, then a batch, four, and one that
  # was trained on, at each evaluation until all have arrived, and after that.
  assert sizes[:4] == [32, 128, 512, 128]


def test_where_data_repeat_both_probes_choose_among_the_same_averages(
  short, tmp_path, monkeypatch
):
  # Four passes over three batches each, of which some are probes.
  monkeypatch.setattr(click_dlrm.Workload, 'steps', STEPS)
  monkeypatch.setattr(repeated, 'EPOCHS', 4)
  (run,) = trainings(repeated)
  found = run.execute(str(tmp_path / 'four'))
  looks = list(range(2, STEPS + 1, 2))
  for name in ('auto', repeated.FRESH):
    assert [step for step, _ in found['choices'][name]] == looks
  curves = found['curves']
  assert {tuple(c[0] for c in v) for v in curves.values()} == {(6, 8, 10, 12)}
  (_, last), shown = found['choices'][repeated.FRESH][-1], [*curves]
  assert curves[repeated.FRESH][-1] == curves[shown[last]][-1]
  # Other data, other weights.
  monkeypatch.setattr(repeated, 'EPOCHS', 1)
  (run,) = trainings(repeated)
  endless = run.execute(str(tmp_path / 'one'))
  assert values_of(endless['curves'], 'raw') != values_of(curves, 'raw')


def test_repeated_rows_have_the_best_of_nadamw_as_target():
  one = run(raw=80, ema=70, auto=72) | {'epochs': 10}
  one['curves'][repeated.FRESH] = one['curves']['raw']
  looks = one['choices']['auto'][:40]
  fresh = [[step, 1 if step <= 50 else 0] for step, _ in looks]
  one['choices'] = {'auto': looks, repeated.FRESH: fresh}
  rows = repeated.rows_of([one])
  committed = repeated.STUDY.committed('repeated.json')
  assert list(rows[0]) == list(committed[0])
  assert {row['same_choice'] for row in rows} == {25 / 40}
  assert {row['epochs'] for row in rows} == {10}
  assert {row['target'] for row in rows} == {0.1}
  assert cells(repeated.table(rows), 'w') == [
    *('1', '0.80', '0.70', '0.72 (raw 0 %)', '0.80 (raw 38 %)', '62 %')
  ]


def test_shares_are_stacked(tmp_path, monkeypatch):
  drawn = []
  save = choice_figures.plots.save
  monkeypatch.setattr(
    choice_figures.plots,
    'save',
    lambda figure, path: (drawn.extend(figure.axes), save(figure, path)),
  )
  choice_figures.draw_choices(auto.choices_of(RUNS[:2]), tmp_path / 'c.png')
  tops = [
    {y for x, y in area.get_paths()[0].vertices if 0.1 < x < 0.9}
    for area in drawn[0].collections
  ]
  # Both runs choose the second of three all the time.
  assert tops == [{0.0}, {0.0, 1.0}, {1.0}]


def test_settings_are_drawn_by_schedule_and_rate(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    choice_figures.plots, 'save', lambda figure, path: drawn.append(figure)
  )
  own = [row for row in ROWS if row['workload'] == 'w']
  choice_figures.draw_steps(own, tmp_path / 'steps.png')
  labels = [t.get_text() for t in drawn[0].axes[0].get_yticklabels()]
  assert labels == ['cosine, x0.5', 'cosine, x1', 'cosine, x2', 'constant, x1']
  texts = [text.get_text() for text in drawn[0].axes[0].texts]
  assert texts[:8] == ['–', '–', '–', '–', '0.81', '0.72', '0.74', '0.72']
