"""The quickstart on a few steps of its own workload."""

import json
import math
import subprocess
import sys

import pytest

from lab.studies import quickstart
from lab.workloads import QUICKSTART_WORKLOAD, build_workload

SHOWN = ('nadamw', 'nadamw_ema')
KEYS = [
  'workload',
  'submission',
  'seed',
  'target',
  'steps_to_target',
  'seconds_to_target',
  'best_validation',
  'budget_steps',
]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  folder = tmp_path_factory.mktemp('results') / 'quickstart'
  workload = build_workload(QUICKSTART_WORKLOAD)
  with pytest.MonkeyPatch.context() as patch:
    # Each costs a process that imports torch; two show all there is to see.
    patch.setattr(quickstart, 'SUBMISSIONS', SHOWN)
    quickstart.quickstart(workload, folder, max_global_steps=7)
  return folder


def test_nadamw_is_compared_with_three_averages_of_it():
  assert quickstart.SUBMISSIONS == (
    'nadamw',
    'nadamw_lawa',
    'nadamw_ema',
    'nadamw_polynomial',
  )


def test_summary_has_a_row_for_each_submission(results):
  rows = json.loads((results / 'summary.json').read_text())
  assert [row['submission'] for row in rows] == list(SHOWN)
  for row in rows:
    assert list(row) == KEYS
    assert row['workload'] == QUICKSTART_WORKLOAD
    assert row['budget_steps'] == 7
    assert row['steps_to_target'] is None
    assert row['seconds_to_target'] is None
    assert math.isfinite(row['best_validation'])


def test_picture_and_logs_are_there(results):
  assert (results / 'curves.png').read_bytes().startswith(b'\x89PNG')
  for name in SHOWN:
    (trial,) = results.glob(f'runs/{name}/*/trial_1')
    assert (trial / 'eval_measurements.csv').exists()
    assert (results / 'runs' / f'{name}.log').exists()


def finished(folder, submission, values, averaging):
  """A run whose logs are typed out."""
  workload = build_workload(QUICKSTART_WORKLOAD)
  run = quickstart.Run(submission, workload, folder, max_global_steps=40)
  run.trial.mkdir(parents=True)
  metric = f'validation/{workload.target_metric_name}'
  lines = [f'accumulated_submission_time,global_step,{metric}']
  lines += [f'{1.5 * i},{10 * i},{v}' for i, v in enumerate(values, 1)]
  (run.trial / 'eval_measurements.csv').write_text('\n'.join(lines) + '\n')
  sections = [
    {'section': name, 'total_seconds': averaging / 2}
    for name in ('Averaging', 'Swap')
  ]
  (run.trial / 'profile.json').write_text(json.dumps({'sections': sections}))
  return run


def test_rows_and_table_say_when_the_target_was_reached(tmp_path):
  workload = build_workload(QUICKSTART_WORKLOAD)
  target = workload.validation_target_value
  better = 0.25 if workload.higher_is_better else -0.25
  good = [target - better, target, target + better, target]
  runs = [
    finished(tmp_path, 'nadamw', [target - better] * 4, 0.0),
    finished(tmp_path, 'nadamw_ema', good, 0.5),
  ]
  rows = [quickstart.row_of(run) for run in runs]
  assert rows[0]['steps_to_target'] is None
  assert rows[1]['steps_to_target'] == 20
  assert rows[1]['seconds_to_target'] == 3.0
  assert rows[1]['best_validation'] == target + better
  lines = quickstart.table_of(runs).splitlines()
  assert 'not reached' in lines[2]
  assert lines[3].split()[:4] == ['nadamw_ema', '20', '50', '%']
  assert lines[3].split()[-1] == '0.50'
  quickstart.draw(runs, tmp_path / 'curves.png')
  assert (tmp_path / 'curves.png').exists()


class Scripted(quickstart.Run):
  """A run that is a line of Python instead of a training."""

  @property
  def log(self):
    return self.results / f'run_{abs(hash(self.submission))}.log'

  def start(self):
    self.log.parent.mkdir(parents=True, exist_ok=True)
    with open(self.log, 'w') as file:
      self.process = subprocess.Popen(
        [sys.executable, '-c', self.submission], stderr=file
      )


def test_a_failed_run_stops_the_others_and_says_why(tmp_path):
  workload = build_workload(QUICKSTART_WORKLOAD)
  texts = ('import time; time.sleep(600)', 'raise SystemExit("error: no")')
  runs = [Scripted(text, workload, tmp_path) for text in texts]
  with pytest.raises(quickstart.RunFailed, match='error: no'):
    quickstart.run_all(runs)
  assert runs[0].process.poll() is not None


def test_at_most_two_run_at_once(tmp_path):
  workload = build_workload(QUICKSTART_WORKLOAD)
  code = (
    'import os, pathlib, time\n'
    f'path = pathlib.Path({str(tmp_path)!r}, str(os.getpid()))\n'
    'path.touch()\n'
    'time.sleep(0.3)\n'
    'assert len(list(path.parent.glob("[0-9]*"))) <= 2\n'
    'path.unlink()\n'
  )
  runs = [Scripted(f'{code}# {i}', workload, tmp_path) for i in range(5)]
  quickstart.run_all(runs)
