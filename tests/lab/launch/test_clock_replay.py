"""Replay of public logs: what is read, where schedules end, what is written."""

import json
import subprocess
import sys

import pytest

from lab.core.errors import InputError
from lab.launch import benchmark, clock_replay
from weightavg.clock_plan import PLANS

HINT = benchmark.BASES['ogbg'].step_hint
# Under self-tuning.
LIMIT = 1.5 * benchmark.BASES['ogbg'].max_runtime_sec


def write(folder, marks, workload='ogbg_pytorch', submission='a'):
  path = folder / submission / 'study_0' / workload / 'trial_1'
  path.mkdir(parents=True)
  path /= 'eval_measurements.csv'
  lines = ['global_step,accumulated_submission_time']
  lines += [f'{step},{seconds}' for step, seconds in marks]
  path.write_text('\n'.join(lines) + '\n')
  return path


def constant(duration, steps=(1000, 2000, 3000, 4000)):
  return [(step, duration * step) for step in steps]


def test_steps_that_a_resumed_run_repeats_count_once(tmp_path):
  marks = [(100, 10.0), (200, 20.0), (300, 30.0), (200, 21.0), (300, 31.0)]
  log = clock_replay.read(write(tmp_path, [*marks, (400, 41.0)]))
  assert log.marks == ((100, 10.0), (200, 21.0), (300, 31.0), (400, 41.0))
  # 20 s for the last 200 steps.
  assert log.late_mean() == 0.1
  durations = list(log.durations(500))
  assert durations[:200] == [0.1] * 100 + [0.11] * 100
  assert len(durations) == 500
  assert sum(durations) == pytest.approx(51.0)


def test_a_log_with_few_evaluations_is_left_out(tmp_path):
  assert clock_replay.read(write(tmp_path, constant(0.1)[:3])) is None


def test_a_schedule_ends_with_the_steps_or_with_the_time(tmp_path):
  log = clock_replay.read(write(tmp_path, constant(0.1)))
  fast = clock_replay.replay(log)
  assert fast.after == (HINT, pytest.approx(0.1 * HINT))
  assert fast.before == (1.5 * HINT, pytest.approx(0.15 * HINT))
  assert fast.reached == pytest.approx(10 * LIMIT, abs=1)
  log = clock_replay.read(write(tmp_path, constant(0.5), submission='slow'))
  slow = clock_replay.replay(log)
  # 95 % of the limit, at half a second.
  assert slow.after[0] == pytest.approx(0.95 * LIMIT / 0.5, abs=2)
  assert slow.after[1] == pytest.approx(0.95 * LIMIT, abs=1)
  assert slow.before[1] == pytest.approx(0.75 * HINT)
  assert slow.revisions <= PLANS
  earlier = clock_replay.replay(log, utilization=0.5)
  assert earlier.limit == LIMIT
  assert earlier.after[1] == pytest.approx(0.5 * LIMIT, abs=1)


def test_rows_count_the_schedules_that_end_in_time(tmp_path):
  replays = [
    clock_replay.replay(
      clock_replay.read(write(tmp_path, constant(d), submission=str(d)))
    )
    for d in (0.1, 0.3, 0.5)
  ]
  cells = dict(
    zip(clock_replay.HEADER[:6], clock_replay.row(replays)[:6], strict=True)
  )
  assert cells['logs'] == '3'
  assert cells['s/step'] == '0.300'
  # 0.1 s x 78,000 steps fit, 0.3 s do not; all plans end in time.
  assert clock_replay.row(replays)[8] == '1 of 3'
  assert clock_replay.row(replays)[11] == '3 of 3'
  # Of the three, 0.5 s alone is limited: 52,000 steps of 0.3 s take 15,600 s.
  row = clock_replay.utilization_row(0.95, replays)
  assert row == ['0.95', '1', '1', '1']


def test_the_last_evaluation_is_a_number_of_periods_and_steps(tmp_path):
  marks = [(k * 6000, k * 3000.0) for k in (1, 2, 3, 4)]
  path = write(tmp_path, marks, workload='finewebedu_lm_jax')
  log = clock_replay.read(path)
  # 18 periods of 2,571 s fit into 47,950.5 s.
  assert clock_replay._last_evaluation(clock_replay.replay(log)) == 18 * 2571.5


def test_the_command_writes_its_tables(tmp_path, capsys):
  logs = tmp_path / 'logs'
  write(logs, constant(0.5))
  write(logs, constant(0.01), workload='mnist_jax')  # not scored
  arguments = [f'--logs={logs}', f'--output={tmp_path / "out"}']
  assert clock_replay.main(arguments) == 0
  content = json.loads((tmp_path / 'out' / 'clock_replay.json').read_text())
  assert [row[:3] for row in content['rows']] == [['ogbg', 'pytorch', '1']]
  assert [row[0] for row in content['utilizations']] == [
    '0.90', '0.93', '0.95', '0.97', '0.99',
  ]  # fmt: skip
  (entry,) = content['replays']
  assert entry['workload'] == 'ogbg'
  assert 'T / step hint' in capsys.readouterr().out


def test_a_cut_line_is_left_out_and_a_foreign_file_named(tmp_path):
  path = write(tmp_path, constant(0.01))
  whole = clock_replay.read(path)
  with open(path, 'a') as file:
    file.write('50')
  assert clock_replay.read(path) == whole
  path.write_text('a,b\n1,2\n')
  with pytest.raises(InputError, match=f'Cannot read {path}: '):
    clock_replay.read(path)


def test_bad_input_ends_in_one_line(tmp_path):
  with pytest.raises(InputError, match=r'Invalid logs=.* Must hold <subm'):
    clock_replay.main([f'--logs={tmp_path}'])
  unscored = tmp_path / 'unscored'
  write(unscored, constant(0.01), workload='mnist_jax')
  output = f'--output={tmp_path / "out"}'
  with pytest.raises(InputError, match='Must hold workloads of AlgoPerf: crit'):
    clock_replay.main([f'--logs={unscored}', output])
  assert not (tmp_path / 'out').exists()
  done = subprocess.run(
    [sys.executable, '-m', 'lab.launch.clock_replay', f'--logs={tmp_path}'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert done.stderr.startswith('error: Invalid logs=')
  assert done.stderr.count('\n') == 1
