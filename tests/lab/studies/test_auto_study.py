"""The study of the choice among averages: its runs, rows and tables."""

import concurrent.futures
import json
import math
import subprocess
import sys

import pytest
import torch

from lab.core import choice_columns
from lab.run import validation
from lab.run.distributed import Context
from lab.run.settings import Settings
from lab.run.trial import TrialRun
from lab.studies import (
  auto_figures,
  auto_report,
  auto_study,
  auto_tables,
  cached_runs,
  choices,
  repeated_study,
)
from lab.studies.auto_report import Study
from lab.workloads import build_workload, click_dlrm

STEPS = 12
FIXED = ('raw', 'ema 0.01', 'polynomial 4')


def result(
  workload='w', seed=0, factor=1.0, schedule='cosine', chosen=(), **at
):
  """A run of 100 steps; `at` is when each candidate arrives, None is never."""
  names = {'raw': 'raw', 'ema': 'ema 0.01', 'poly': 'polynomial 4'}
  names |= {'auto': 'auto', 'one': 'auto, 1 batch'}
  curves = {}
  for key, when in at.items():
    steps = range(50, 101, 2)
    values = [[s, 0.1 if when and s >= when else 0.9] for s in steps]
    curves[names[key]] = values
  looks = list(range(2, 101, 2))
  chooser = {'auto': [[s, 1] for s in looks]}
  if 'one' in at:
    chooser['auto, 1 batch'] = list(map(list, zip(looks, chosen, strict=False)))
  return {
    'workload': workload,
    'seed': seed,
    'learning_rate_factor': factor,
    'schedule': schedule,
    'budget_steps': 100,
    'target': 0.5,
    'higher_is_better': False,
    'curves': curves,
    'choices': chooser,
  }


def cells(table, first):
  """The cells behind the first one, of the line that begins with it."""
  (line,) = [t for t in table.splitlines() if t.startswith(f'| {first} |')]
  return [cell.strip() for cell in line.strip('|').split('|')][1:]


def test_rows_say_when_each_candidate_arrives_and_what_was_chosen():
  rows = auto_report.rows_of(
    [result(raw=80, ema=None, poly=50, auto=60, one=90, chosen=[-1, 0, 1, 2])]
  )
  by_name = {row['candidate']: row for row in rows}
  assert list(by_name) == [
    *('nadamw', 'ema 0.01', 'polynomial 4', 'auto', 'auto, 1 batch')
  ]
  assert [r['steps_to_target'] for r in rows] == [80, None, 50, 60, 90]
  assert [r['ratio_to_nadamw'] for r in rows] == [1, None, 0.625, 0.75, 1.125]
  assert [r['reached_at_first_look'] for r in rows] == [
    *(False, False, True, False, False)
  ]
  assert [r['share_of_raw'] for r in rows] == [None, None, None, 0.0, 0.5]
  assert {r['evaluated_every'] for r in rows} == {2}
  rest = {'workload': 'w', 'seed': 0, 'learning_rate_factor': 1.0}
  assert rest.items() <= by_name['auto'].items()
  assert by_name['auto']['schedule'] == 'cosine'
  never = auto_report.rows_of([result(raw=None, ema=60, auto=60)])
  assert {row['ratio_to_nadamw'] for row in never} == {None}


def test_who_never_arrives_is_later_than_all_who_do():
  never = math.inf
  assert auto_report.difference(0.72, 0.7) == 0.02
  assert auto_report.difference(never, 0.7) == never
  assert auto_report.difference(0.7, never) == -never
  assert auto_report.difference(never, never) is None
  assert auto_report.middle([0.7, never, 0.9]) == 0.9
  assert auto_report.middle([0.7, never]) == never


# Two seeds at the tuned setting, one at the others. The best fixed candidate is
# at the tuned setting ema (74, of 70 and 74), then poly, raw, and none.
RUNS = [
  result(seed=0, raw=80, ema=70, poly=80, auto=72),
  result(seed=1, raw=82, ema=74, poly=None, auto=76),
  result(factor=2.0, raw=90, ema=88, poly=86, auto=90),
  result(schedule='constant', raw=94, ema=None, poly=None, auto=None),
  result(factor=0.5, raw=None, ema=None, poly=None, auto=None),
  result('v', raw=60, ema=50, poly=50, auto=50),
]
ROWS = auto_report.rows_of(RUNS)


def test_best_fixed_candidate_is_that_of_each_setting():
  study = Study.of(ROWS)
  best = {
    setting[1:]: study.best_fixed(setting) for setting in study.settings('w')
  }
  assert best == {
    (1.0, 'cosine'): 0.74,
    (2.0, 'cosine'): 0.86,
    (1.0, 'constant'): 0.94,
    (0.5, 'cosine'): math.inf,
  }
  assert study.gaps('auto', 'w') == [0.02, 0.04, math.inf]
  assert study.gaps('nadamw', 'w') == [0.08, 0.04, 0.0]
  assert study.differences('auto', 'nadamw', 'w') == [
    *(-0.08, -0.06, 0.0, math.inf)
  ]
  assert study.arrivals('auto') == (4, 6)


def test_steps_are_medians_at_the_tuned_setting():
  table = auto_tables.steps(ROWS)
  assert table.splitlines()[0] == (
    '| workload | seeds | NadamW | EMA 1 % | polynomial 4 | auto | '
    'auto - best fixed |'
  )
  assert cells(table, 'w') == [
    *('2', '0.82', '0.74', 'not reached (1 of 2)', '0.76', '+0.02')
  ]
  # The first look is at half of T.
  assert cells(table, 'v') == ['1', '0.60', '≤ 0.50', '≤ 0.50', '≤ 0.50', '0']


def test_gaps_are_over_the_settings():
  table = auto_tables.gaps(ROWS)
  assert table.splitlines()[0] == '| candidate | v | w | all |'
  assert cells(table, 'auto') == [
    '0 / 0 / 1 of 1',
    '+0.04 / ∞ / 1 of 3',
    '+0.04 / ∞ / 2 of 4',
  ]
  assert cells(table, 'NadamW')[1] == '+0.04 / +0.08 / 1 of 3'
  nowhere = auto_report.rows_of([result(raw=None, ema=None, auto=None)])
  assert cells(auto_tables.gaps(nowhere), 'auto') == ['–', '–']


def test_runs_are_compared_one_by_one():
  table = auto_tables.comparison(ROWS)
  assert cells(table, 'w') == [
    '5',
    '3 / 3 / 4',
    '0 / ∞',
    'earlier 2, same 1, later 1',
    '+0.02 / +0.02',
    'earlier 0, same 0, later 3',
  ]
  assert cells(table, '**all**')[1] == '4 / 4 / 5'


def found(rows):
  """What was found, and whether it is enough, for each number to reach."""
  lines = auto_tables.verdicts(rows).splitlines()[2:]
  return [[c.strip() for c in line.strip('|').split('|')][1:] for line in lines]


def test_misses_are_said():
  assert found(ROWS) == [
    ['at most +0.02 (w)', 'reached'],
    ['at most ∞; within it at 2 of 4 settings where any arrives', '**missed**'],
    ['at most ∞; within it in 4 of 5 runs where either arrives', '**missed**'],
    ['+0.02; earlier 0, same 1, later 3', '**missed**'],
  ]


def test_what_is_reached_is_said():
  ahead = [result(seed=s, raw=80, ema=74, auto=72) for s in range(3)]
  assert [row[-1] for row in found(auto_report.rows_of(ahead))] == (
    ['reached'] * 4
  )
  # No later than the default average is not ahead of it.
  tied = [result(seed=s, raw=80, ema=72, auto=72) for s in range(3)]
  assert [row[-1] for row in found(auto_report.rows_of(tied))] == [
    *('reached', 'reached', 'reached', '**missed**')
  ]


@pytest.mark.parametrize(
  ('auto', 'best', 'late'),
  [(74, 'reached', 'reached'), (76, '**missed**', '**missed**')],
)
def test_the_limits_are_those_of_the_study(auto, best, late):
  # Two hundredths behind the best; nothing or two behind NadamW.
  rows = auto_report.rows_of([result(raw=74, ema=72, auto=auto)])
  assert [row[-1] for row in found(rows)][:3] == [best, best, late]


def test_nothing_is_claimed_where_nothing_arrives():
  rows = auto_report.rows_of([result(raw=None, ema=None, auto=None)])
  assert {row[-1] for row in found(rows)} == {'unknown'}


def test_ablations_stand_beside_auto():
  rows = auto_report.rows_of(
    [
      result(seed=0, raw=80, ema=70, auto=72, one=80, chosen=[0, 0, 0, 1]),
      result(seed=1, raw=80, ema=70, auto=74, one=None, chosen=[0, 0]),
      result(schedule='constant', raw=80, ema=70, auto=74),
    ]
  )
  table = auto_tables.ablation(rows)
  assert table.splitlines()[0] == (
    '| workload | seeds | auto | auto, 1 batch | NadamW |'
  )
  assert cells(table, 'w') == [
    *('2', '0.74 (raw 0 %)', 'not reached (1 of 2) (raw 88 %)', '0.80')
  ]


def test_rules_that_choose_everywhere_are_compared_over_all_runs():
  rows = auto_report.rows_of(
    [
      result(seed=0, raw=80, ema=70, auto=72, one=70, chosen=[1]),
      result(schedule='constant', raw=80, ema=70, auto=76, one=82, chosen=[1]),
    ]
  )
  table = auto_tables.rules(rows)
  assert cells(table, 'auto') == [
    '2 of 2',
    *('-0.04 / -0.04', 'earlier 2, same 0, later 0'),
    *('+0.06 / +0.06', 'earlier 0, same 0, later 2'),
  ]
  assert cells(table, 'auto, 1 batch') == [
    '2 of 2',
    *('+0.02 / +0.02', 'earlier 1, same 0, later 1'),
    *('+0.12 / +0.12', 'earlier 0, same 1, later 1'),
  ]
  assert cells(auto_tables.gaps(rows), 'auto, 1 batch')[1] == (
    '+0.12 / +0.12 / 1 of 2'
  )
  # One that is missing somewhere is in the table of the tuned setting only.
  only = ('constant', 'auto, 1 batch')
  part = [r for r in rows if (r['schedule'], r['candidate']) != only]
  assert len(auto_tables.rules(part).splitlines()) == 3


def test_a_part_of_the_study_says_how_much_there_is():
  text = auto_tables.extent(ROWS)
  assert text.startswith('6 runs at 5 settings')
  assert 'each with 1 to 2 seeds.' in text
  assert 'every 0.02 of T' in text
  assert 'each with 1 seed.' in auto_tables.extent(
    auto_report.rows_of(RUNS[-1:])
  )
  # At no tuned setting: tables without lines.
  assert auto_tables.table(auto_report.rows_of(RUNS[2:3]))


def test_choices_and_figures_are_written(tmp_path):
  auto_report.write(RUNS[::-1], str(tmp_path))
  assert json.loads((tmp_path / 'auto.json').read_text()) == (
    auto_report.rows_of(
      # Sorted by workload, schedule, learning rate and seed.
      [RUNS[i] for i in (5, 3, 4, 0, 1, 2)]
    )
  )
  first = json.loads((tmp_path / 'choices.json').read_text())[0]
  assert first['workload'] == 'v'
  assert first['candidates'] == list(FIXED)
  assert first['choices']['auto'][:2] == [[2, 1], [4, 1]]
  for name in ('auto.png', 'choices.png'):
    assert (tmp_path / name).stat().st_size > 10_000


def test_shares_are_of_all_runs_also_of_those_that_are_over():
  runs = [
    {'budget_steps': 10, 'choices': {'auto': [[5, 1], [10, 0]]}},
    {'budget_steps': 20, 'choices': {'auto': [[10, -1]]}},
  ]
  times, columns = auto_figures.shares(runs, ['raw', 'ema 0.01'])
  assert times == [0.5, 1.0]
  assert columns == [[0.5, 0.5], [0.5, 0.0]]


def test_jobs_are_named_apart_and_ablated_at_the_tuned_setting_only():
  found = auto_study.jobs(['click_dlrm'], [0, 1])
  assert len({job['name'] for job in found}) == len(found) == 18
  ablated = [
    (j['learning_rate_factor'], j['schedule']) for j in found if j['ablation']
  ]
  assert ablated == [auto_report.TUNED] * 2


@pytest.fixture
def cached(monkeypatch, tmp_path):
  """`cached_runs` without processes; the names of what is run."""

  def pool(processes, mp_context):
    return concurrent.futures.ThreadPoolExecutor(processes)

  monkeypatch.setattr(concurrent.futures, 'ProcessPoolExecutor', pool)
  monkeypatch.setattr(cached_runs.logging, 'set_verbosity', lambda level: None)
  made = []

  def run(job, directory):
    assert directory == str(tmp_path / 'runs')
    made.append(job['name'])
    return {'budget': job['budget_steps'], 'curve': [[1, 0.5]]}

  def call(*jobs):
    made.clear()
    results = cached_runs.run_all(run, jobs, str(tmp_path / 'runs'), 1)
    return list(results), list(made)

  return call


JOB = {'name': 'a', 'budget_steps': 100, 'candidates': ('raw', 'ema 0.1')}


def test_what_is_finished_is_not_run_again(cached, tmp_path):
  other = JOB | {'name': 'b'}
  assert cached(JOB)[1] == ['a']
  results, made = cached(JOB, other)
  assert made == ['b']
  assert results == [{'budget': 100, 'curve': [[1, 0.5]]}] * 2
  assert cached(JOB, other)[1] == []
  runs = str(tmp_path / 'runs')
  assert cached_runs.finished([JOB, JOB | {'name': 'c'}], runs) == results[:1]


@pytest.mark.parametrize(
  'changed', [{'budget_steps': 50}, {'candidates': ('raw', 'ema 0.2')}]
)
def test_a_result_of_another_run_is_made_anew(changed, cached, tmp_path):
  cached(JOB)
  other = JOB | changed
  assert cached_runs.finished([other], str(tmp_path / 'runs')) == []
  results, made = cached(other)
  assert made == ['a']
  assert results[0]['budget'] == other['budget_steps']
  assert cached(other)[1] == []


def test_a_broken_or_foreign_file_is_made_anew(cached, tmp_path):
  (tmp_path / 'runs').mkdir()
  for text in ('{"job":', '{"curves": {}}', '[1]'):
    (tmp_path / 'runs' / 'a.json').write_text(text)
    assert cached(JOB)[1] == ['a']


def test_several_batches_are_joined_leaf_by_leaf():
  def batch(*values):
    rows = torch.tensor(values)
    return {'inputs': {'a': rows}, 'targets': (rows + 1, rows + 2)}

  joined = auto_study.joined([batch(1, 2), batch(3), batch(4)])
  assert joined['inputs']['a'].tolist() == [1, 2, 3, 4]
  assert [t.tolist() for t in joined['targets']] == [[2, 3, 4, 5], [3, 4, 5, 6]]
  assert isinstance(joined['targets'], tuple)


@pytest.fixture
def short(monkeypatch):
  """A run of twelve steps with an evaluation after every two."""
  workload = click_dlrm.Workload
  monkeypatch.setattr(workload, 'step_hint', STEPS)
  monkeypatch.setattr(workload, 'eval_every_steps', 2)
  for target in ('validation_target_value', 'test_target_value'):
    monkeypatch.setattr(workload, target, 0.0)
  small = build_workload('click_dlrm').sizes | {'validation': 64, 'test': 64}
  monkeypatch.setattr(workload, 'sizes', small, raising=False)


def job(seed=4, to_the_end=True):
  (found,) = (
    j for j in auto_study.jobs(['click_dlrm'], [seed]) if j['ablation']
  )
  return found | {'to_the_end': to_the_end}


def test_autos_curve_is_that_of_the_submission_under_the_runner(
  short, tmp_path, monkeypatch
):
  said = []
  monkeypatch.setattr(
    'lab.run.trial.Progress.say', lambda self, line: said.append(line)
  )
  followed = auto_study.run(job(), str(tmp_path / 'study'))
  settings = Settings(
    workload='click_dlrm',
    submission_path=auto_study.SUBMISSION,
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
  expected = [[step, result[metric]] for step, result in alone.eval_results]
  assert [step for step, _ in expected] == [2, 4, 6, 8, 10, 12]
  # Curves begin at half of the budget.
  assert followed['curves']['auto'] == expected[2:]
  # What the submission has logged is what the study has seen it choose.
  seen = choices.read(str(directory))
  names = list(seen[0].losses)
  assert followed['choices']['auto'] == [
    [choice.step, names.index(choice.shown)] for choice in seen
  ]
  assert {choice.shown for choice in seen} != {'raw'}
  # So does the runner's own line of each evaluation.
  ends = [line.partition('  average ')[2] for line in said]
  assert ends == [choice.shown for choice in seen]
  assert followed['curves']['auto'] != followed['curves']['raw']
  for name in auto_study.ABLATION:
    assert [step for step, _ in followed['choices'][name]] == [
      2,
      4,
      6,
      8,
      10,
      12,
    ]


def test_a_run_ends_when_all_have_come_to_the_target(
  short, tmp_path, monkeypatch
):
  monkeypatch.setattr(click_dlrm.Workload, 'validation_target_value', 99.0)
  found = auto_study.run(job(to_the_end=False), str(tmp_path))
  assert {tuple(c[0] for c in v) for v in found['curves'].values()} == {(6,)}
  assert [step for step, _ in found['choices']['auto']] == [2, 4, 6]


def test_where_data_repeat_both_probes_choose_among_the_same_averages(
  short, tmp_path, monkeypatch
):
  # Four passes over three batches each, of which some are probes.
  monkeypatch.setattr(click_dlrm.Workload, 'steps', STEPS)
  (found,) = repeated_study.jobs(['click_dlrm'], [4])
  repeated = repeated_study.run(found | {'epochs': 4}, str(tmp_path / 'four'))
  looks = list(range(2, STEPS + 1, 2))
  for name in ('auto', repeated_study.FRESH):
    assert [step for step, _ in repeated['choices'][name]] == looks
  curves = repeated['curves']
  assert {tuple(c[0] for c in curve) for curve in curves.values()} == {
    (6, 8, 10, 12)
  }
  assert repeated['target'] == min(value for _, value in curves['raw'])
  (_, last), shown = repeated['choices'][repeated_study.FRESH][-1], [*curves]
  assert curves[repeated_study.FRESH][-1] == curves[shown[last]][-1]
  # Other data, other weights.
  endless = repeated_study.run(found | {'epochs': 1}, str(tmp_path / 'one'))
  assert endless['curves']['raw'] != curves['raw']


def test_repeated_rows_are_those_of_the_study_and_say_how_often_probes_agree():
  one = result(raw=80, ema=70, auto=72) | {'epochs': 10}
  one['curves'][repeated_study.FRESH] = one['curves']['raw']
  looks = one['choices']['auto']
  fresh = [[step, 1 if step <= 50 else 0] for step, _ in looks[:40]]
  one['choices'] = {'auto': looks[:40], repeated_study.FRESH: fresh}
  rows = repeated_study.rows_of([one])
  assert {row['same_choice'] for row in rows} == {25 / 40}
  assert {row['epochs'] for row in rows} == {10}
  assert cells(repeated_study.table(rows), 'w') == [
    *('1', '0.80', '0.70', '0.72 (raw 0%)', '0.80 (raw 38%)', '62%')
  ]


@pytest.mark.parametrize(
  ('arguments', 'line'),
  [
    (
      ['--learning_rate_factors=0.7'],
      'Error: Invalid learning_rate_factors=0.7. Must be among 1, 0.5, 2.',
    ),
    (['--schedules=x'], 'Error: Invalid schedules=x. Must be among cosine,'),
    (['--seeds=1,1'], 'Error: Invalid seeds. 1 is given twice.'),
    (
      ['--schedules=constant', '--learning_rate_factors=2,0.5'],
      'Error: No finished run of these is in',
    ),
  ],
)
def test_a_part_that_does_not_exist_ends_in_one_line(arguments, line, tmp_path):
  command = [sys.executable, '-m', 'lab.studies.auto_study', '--report_only']
  done = subprocess.run(
    [*command, f'--output_dir={tmp_path}', *arguments],
    capture_output=True,
    text=True,
    check=False,
    cwd=auto_study.ROOT,
  )
  assert done.returncode == 1
  assert done.stderr.startswith(line)
  assert len(done.stderr.splitlines()) == 1


def trial_dir(folder, text, hparams=None):
  (folder / 'measurements.csv').write_text(text)
  if hparams is not None:
    (folder / 'hparams.json').write_text(json.dumps(hparams))
  return str(folder)


TWO = {'averaging_candidates': 'raw, ema  0.1'}
HEADER = 'averaging_choice,global_step,loss,probe_loss/ema 0.1,probe_loss/raw\n'


def test_choices_are_read_from_a_log_of_the_benchmark(tmp_path, capsys):
  text = HEADER + (
    ',5,0.7,,\n1.0,10.0,,0.25,0.5\n0.0,20.0,,0.75,0.5\n'
    # Preempted, and resumed from step 10.
    '-1.0,20.0,,inf,\n0.0,30.0,,,0.5\n0.0,40'
  )
  found = choices.read(trial_dir(tmp_path, text, TWO))
  assert [(c.step, c.shown) for c in found] == [
    (10, 'ema 0.1'),
    (20, choice_columns.NOTHING_FINITE),
    (30, 'raw'),
  ]
  assert found[0].losses == {'raw': 0.5, 'ema 0.1': 0.25}
  assert math.isnan(found[1].losses['raw'])
  assert found[1].losses['ema 0.1'] == math.inf
  table = choices.table(found).splitlines()
  assert table[0].split() == ['step', 'shown', 'raw', 'ema', '0.1']
  assert table[2].split() == ['10', 'ema', '0.1', '0.5', '0.25']
  choices.main([str(tmp_path), '--output', str(tmp_path / 'new' / 'c.png')])
  assert capsys.readouterr().out.startswith('\n'.join(table))
  assert (tmp_path / 'new' / 'c.png').stat().st_size > 5_000


@pytest.mark.parametrize(
  ('text', 'hparams', 'message'),
  [
    ('global_step,loss\n5,0.5\n', None, 'chose among no averages'),
    (HEADER, TWO, 'chose among no averages'),
    (HEADER + '0,5,,1,1\n', None, 'has the candidates ema 0.1, raw, hparams'),
    (HEADER + '2,5,,1,1\n', TWO, 'choice 2'),
  ],
)
def test_a_run_without_choices_ends_in_one_line(
  text, hparams, message, tmp_path
):
  with pytest.raises(choices.InputError, match=message):
    choices.read(trial_dir(tmp_path, text, hparams))


def test_no_run_ends_in_one_line(tmp_path):
  with pytest.raises(choices.InputError, match='No such directory'):
    choices.read(str(tmp_path / 'none'))
  with pytest.raises(choices.InputError, match='has no measurements'):
    choices.read(str(tmp_path))


def test_a_run_has_the_learning_rate_and_the_schedule_of_its_job(tmp_path):
  workload = build_workload('click_dlrm')
  space = auto_study.ROOT / workload.tuned_search_space
  (point,) = json.loads(space.read_text())
  given = [
    auto_study.trial_of(workload, found, str(tmp_path)).hyperparameters
    for found in auto_study.jobs(['click_dlrm'], [0])
  ]
  assert [
    (g.learning_rate / point['learning_rate'], g.schedule) for g in given
  ] == [
    (factor, schedule)
    for schedule in ('cosine', 'cosine_to_half', 'constant')
    for factor in (1.0, 0.5, 2.0)
  ]


def test_each_rule_has_its_memory_and_its_probe(short, tmp_path, monkeypatch):
  monkeypatch.setattr(click_dlrm.Workload, 'validation_target_value', 99.0)
  looked_at, own, memories = [], set(), {}
  compare = auto_study.AutoRun._compare
  choose = auto_study.Chooser.choose

  def spy(run, batch, rng):
    module = run.trial.submission.module
    memories.update(
      {name: c.selector._memory for name, c in run._choosers.items()}
    )
    own.add(run.state.optimizer_state['selector'].latest)
    which = [batch is module.set_aside, batch is module.trained_on]
    looked_at.append((len(batch['targets']), *which))
    return compare(run, batch, rng)

  heard = []

  def listen(chooser, comparison, step):
    heard.append(comparison)
    choose(chooser, comparison, step)

  monkeypatch.setattr(auto_study.AutoRun, '_compare', spy)
  monkeypatch.setattr(auto_study.Chooser, 'choose', listen)
  found = auto_study.run(job(to_the_end=False), str(tmp_path))
  assert memories == (
    auto_study.MEMORIES
    | auto_study.ONE_BATCH
    | auto_study.FOUR_BATCHES
    | auto_study.TRAINED_ON
  )
  # Evaluations after steps 2, 4 and 6.
  assert looked_at == 3 * [
    (128, True, False),
    (512, False, False),
    (128, False, True),
  ]
  assert sum(any(c is o for o in own) for c in heard) == 3 * len(
    auto_study.MEMORIES
  )
  for name in memories:
    assert {which for _, which in found['choices'][name]} != {-1}, name


@pytest.fixture
def figure(monkeypatch):
  """The figure that was drawn last, left open."""
  from matplotlib import pyplot

  monkeypatch.setattr(pyplot, 'close', lambda figure: None)
  yield pyplot.gcf
  monkeypatch.undo()
  pyplot.close('all')


def test_steps_are_drawn_by_schedule_and_rate_and_never_in_a_band(
  figure, tmp_path
):
  times = {
    ('w', 2.0, 'cosine'): math.inf,
    ('w', 0.5, 'cosine'): 0.7,
    ('w', 1.0, 'constant'): 0.8,
  }
  curves = {'auto': times, 'NadamW': times}
  auto_figures.draw_steps(curves, str(tmp_path / 'steps.png'))
  (axes,) = figure().axes
  assert [label.get_text() for label in axes.get_xticklabels()] == [
    *('cosine, x0.5', 'cosine, x2', 'constant, x1')
  ]
  drawn = [(line.get_xdata(), line.get_ydata()) for line in axes.lines]
  x, y = map(list, drawn[0])
  assert y == [0.7, auto_figures._NEVER]
  assert [round(value) for value in x] == [0, 1]
  # Side by side, not one on the other.
  assert list(drawn[3][0]) != x


def test_shares_are_stacked(figure, tmp_path):
  auto_figures.draw_choices(
    auto_report.choices_of(RUNS[:2]), str(tmp_path / 'choices.png')
  )
  (axes,) = figure().axes
  ends = {}
  for bar in axes.patches:
    ends.setdefault(bar.get_x(), []).append((bar.get_y(), bar.get_height()))
  # Both runs choose the second of three all the time.
  assert set(map(tuple, ends.values())) == {((0, 0), (0, 1), (1, 0))}
