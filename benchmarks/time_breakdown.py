"""Profile a run with averaging: `python -m benchmarks.time_breakdown`.

The runner trains NadamW with EMA on the language model with --profile, at the
default cadence and with one sample per step.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from benchmarks.measure import LOCAL, TIME_BREAKDOWN, check_output
from lab.core import command_line, logs
from lab.run import profile_report
from lab.workloads import build_workload

WORKLOAD = 'stdlib_lm'
STEPS = 600
CADENCES = {
  'default cadence': {},
  'a sample after every step': {
    'averaging_every_steps': 1,
    'averaging_horizon': 0.01,
  },
}


def breakdown(knobs: dict, folder: str) -> dict:
  """Return the profile of one run."""
  workload = build_workload(WORKLOAD)
  (point,) = json.loads(pathlib.Path(workload.tuned_search_space).read_text())
  space = pathlib.Path(folder, 'point.json')
  space.write_text(json.dumps([point | knobs]))
  subprocess.run(
    [
      *(sys.executable, '-m', 'lab.run'),
      f'--workload={WORKLOAD}',
      '--submission_path=submissions/nadamw_ema/submission.py',
      f'--tuning_search_space={space}',
      f'--experiment_dir={folder}',
      '--experiment_name=profiled',
      '--rng_seed=0',
      f'--max_global_steps={STEPS}',
      '--overwrite',
      '--run_to_budget',
      '--profile',
    ],
    check=True,
    capture_output=True,
  )
  trial = pathlib.Path(folder, 'profiled', f'{WORKLOAD}_pytorch', 'trial_1')
  return json.loads((trial / 'profile.json').read_text())


def main() -> None:
  parser = command_line.Parser(
    'python -m benchmarks.time_breakdown', description=__doc__
  )
  parser.formatter_class = command_line.Formatter
  parser.add_argument(
    '--output', type=pathlib.Path, default=LOCAL / TIME_BREAKDOWN
  )
  arguments = parser.parse_args()
  check_output(arguments.output)
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    for title, knobs in CADENCES.items():
      results[title] = breakdown(knobs, folder)
      print(f'{title}\n{profile_report.table(results[title])}\n')
  arguments.output.parent.mkdir(parents=True, exist_ok=True)
  logs.write_json(str(arguments.output), results)


if __name__ == '__main__':
  command_line.run(main)
