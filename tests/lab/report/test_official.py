"""Public AlgoPerf logs: the official scores and times, to 1e-9.

WEIGHTAVG_SHARED, or ../shared beside the checkout, holds algoperf_a100_logs
(nine submissions of AlgoPerf 1.0 with the output of the official scoring code
in official/) and algoperf_v05_logs (three of 0.5).
"""

import csv
import json
import math
import os
import pathlib
import random
import statistics

import pytest
from slow_scores import slow_scores

from lab.report import __main__ as command
from lab.report import targets

_ROOT = pathlib.Path(__file__).parents[3]
SHARED = pathlib.Path(
  os.environ.get('WEIGHTAVG_SHARED', _ROOT.parent / 'shared')
)
A100 = SHARED / 'algoperf_a100_logs'
V05 = SHARED / 'algoperf_v05_logs'


def _report(*arguments):
  return command.read(command.parser().parse_args([*arguments, '--output=.']))


def _rows(path):
  with open(path, encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


@pytest.mark.skipif(not A100.is_dir(), reason=f'{A100} is missing')
@pytest.mark.parametrize('ruleset', ['self', 'external'])
@pytest.mark.parametrize('fastest', ['seconds', 'evaluations'])
def test_scores_and_times_are_the_official_ones(ruleset, fastest):
  report = _report(str(A100), f'--ruleset={ruleset}', f'--fastest={fastest}')
  assert report.problems == []
  content = report.as_json()
  official = {
    row['submission']: float(row['score'])
    for row in _rows(A100 / 'official' / 'scores.csv')
  }
  assert len(official) == 9
  assert content['scores'] == pytest.approx(official, abs=1e-9, rel=0)
  times = {
    (row['submission'], row['workload']): row['seconds']
    for row in content['time_to_target']
  }
  assert len(times) == 81
  for row in _rows(A100 / 'official' / 'time_to_targets.csv'):
    submission = row.pop('submission')
    for workload, text in row.items():
      expected = float(text or 'inf')
      seconds = times[submission, workload]
      if math.isinf(expected):
        assert seconds is None, (submission, workload)
        continue
      assert seconds == pytest.approx(expected, abs=1e-9, rel=0)


def _seconds_by_loop(root, goal, submission, workload):
  """Median over studies of the seconds to target, NaN without logs."""
  column = f'validation/{goal["target_metric_name"]}'
  sign = -1 if goal['target_metric_name'] in ('loss', 'wer', 'ppl') else 1
  target = sign * goal['validation_target_value']
  fastest = {}
  for path in root.glob(f'{submission}/*/{workload}_*/*/eval_*.csv'):
    study = fastest.setdefault(path.parts[-4], [math.inf])
    study += [
      float(line['accumulated_submission_time'])
      for line in _rows(path)
      if sign * float(line[column] or 'nan') >= target
    ][:1]
  medians = [min(times) for times in fastest.values()]
  return statistics.median(medians) if medians else math.inf


@pytest.mark.parametrize('folder', [A100, V05], ids=['a100', 'v05'])
def test_any_choice_of_submissions_and_workloads_has_its_own_scores(
  folder, tmp_path
):
  """Scores depend on the group; a loop over files and definition agrees."""
  if not folder.is_dir():
    pytest.skip(f'{folder} is missing')
  content = json.loads((folder / targets.TARGETS_FILE).read_text())
  base = content['base_workloads']
  submissions = sorted(p.parent.name for p in folder.glob('*/study_0'))
  choose = random.Random(0)
  for number in range(6):
    names = choose.sample(submissions, choose.randint(1, len(submissions)))
    chosen = choose.sample(base, choose.randint(1, len(base)))
    root = tmp_path / str(number)
    for path in folder.glob('*/*/*'):
      submission, study, workload = path.parts[-3:]
      if submission in names and workload.rpartition('_')[0] in chosen:
        link = root / submission / study / workload
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve(), target_is_directory=True)
    file = root / targets.TARGETS_FILE
    file.write_text(json.dumps(content | {'base_workloads': chosen}))
    times = {
      name: {
        w: _seconds_by_loop(root, content['workloads'][w], name, w)
        for w in chosen
      }
      for name in names
    }
    scores = _report(str(root), '--ruleset=self').as_json()['scores']
    assert scores == pytest.approx(slow_scores(times, chosen), abs=1e-9, rel=0)


@pytest.mark.parametrize(('folder', 'version'), [(A100, '1.0'), (V05, '0.5')])
def test_targets_of_the_package_are_those_of_the_logs(folder, version):
  if not folder.is_dir():
    pytest.skip(f'{folder} is missing')
  own = targets.of_version(version)
  read = targets.read(folder / targets.TARGETS_FILE)
  assert set(own.base_workloads) == set(read.base_workloads)
  for name in own.base_workloads:
    assert own.goals[name] == read.goals[name]
  assert (own.gpus, own.version) == (read.gpus, read.version)


@pytest.mark.skipif(not V05.is_dir(), reason=f'{V05} is missing')
def test_medians_of_v05_are_those_of_a_loop_over_its_files():
  content = _report(str(V05)).as_json()
  workloads = json.loads((V05 / 'workload_targets.json').read_text())
  goals = workloads['workloads']
  assert len(content['time_to_target']) == 3 * 8
  for row in content['time_to_target']:
    goal = goals[row['workload']]
    column = f'validation/{goal["target_metric_name"]}'
    sign = -1 if column in ('validation/loss', 'validation/wer') else 1
    target = sign * goal['validation_target_value']
    fastest = {f'study_{i}': (math.inf, math.inf) for i in range(3)}
    trials = f'{row["submission"]}/*/{row["workload"]}_*/*/eval_*.csv'
    for path in V05.glob(trials):
      study = path.parts[-4]
      for line in _rows(path):
        if sign * float(line[column] or 'nan') >= target:
          seconds = float(line['accumulated_submission_time'])
          reached = (seconds, float(line['global_step']))
          fastest[study] = min(fastest[study], reached)
    seconds = statistics.median(t for t, _ in fastest.values())
    if math.isinf(seconds):
      assert row['seconds'] is None
      assert row['steps'] is None
      assert row['fraction_of_budget'] is None
      continue
    assert row['seconds'] == pytest.approx(seconds, abs=1e-9, rel=0)
    if row['submission'] != 'lawa_queue':
      steps = statistics.median(s for _, s in fastest.values())
      assert row['steps'] == steps
      assert row['fraction_of_budget'] == steps / goal['step_hint']


@pytest.mark.skipif(not V05.is_dir(), reason=f'{V05} is missing')
def test_lawa_queue_of_v05_makes_several_steps_a_call():
  report = _report(str(V05))
  medians = report.medians.set_index(['submission', 'workload'])
  # 55 calls of 260 steps. By calls, it would need a thousandth of the budget.
  assert medians.loc[('lawa_queue', 'ogbg'), 'steps'] == 55 * 260
  times = report.best.set_index(['submission', 'workload'])['step_seconds']
  # A step takes about as long as one of Shampoo's grafting-only neighbours.
  assert 0.2 < times['lawa_queue', 'ogbg'] < 0.5
