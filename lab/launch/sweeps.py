"""Write tuning_search_spaces/study/: the sweeps of a study of averaging.

`python -m lab.launch.sweeps`. Each file is a list of points with equal keys, as
AlgoPerf reads them (`--num_tuning_trials` must be their number), around one
published point: point 5 of NadamW and point 1 of Shampoo, which are the ones
that the self-tuning submissions use. Swept are the averages' cadence and
length, the learning rate, its schedule, and the budget, after Ajroldi et al.
2025, arXiv 2502.06761; the multiples of the learning rate are a choice made
here, which was not compared with theirs.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from lab.core import command_line

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUDY = ROOT / 'tuning_search_spaces' / 'study'
Point = dict[str, Any]

# Optimizer to the index of its point in tuning_search_spaces/<optimizer>.json.
CENTRES = {'nadamw': 4, 'shampoo': 0}
SUBMISSIONS = {
  'nadamw': 'none',
  'nadamw_lawa': 'lawa',
  'nadamw_ema': 'ema',
  'shampoo': 'none',
  'shampoo_lawa': 'lawa',
  'shampoo_ema': 'ema',
}
# 0.2 % of T, the submissions' own cadence, comes first: the others are in steps
# and so in a file of their own, since all points of a file have the same keys.
EVERY = 0.002
EVERY_STEPS = (32, 64, 128, 256, 512, 1024, 2048)
WINDOWS = (2, 5, 10, 20, 50)
DECAYS = (0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
# Multiples of the point's own learning rate.
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SCHEDULES = ('cosine', 'cosine_to_half', 'constant')
BUDGETS = (0.25, 0.5, 0.75, 1.0)
_LENGTHS = {'lawa': ('lawa_window', WINDOWS), 'ema': ('ema_decay', DECAYS)}


def _centre(optimizer: str) -> Point:
  path = ROOT / 'tuning_search_spaces' / f'{optimizer}.json'
  return json.loads(path.read_text(encoding='utf-8'))[CENTRES[optimizer]]


def sweeps_of(submission: str) -> dict[str, list[Point]]:
  """Points of each sweep of a submission, by the sweep's name.

  horizon: length of the average, in samples 0.2 % of T apart.
  cadence: the same at 32 to 2048 steps between samples.
  learning_rate: multiples of the centre's.
  schedule: to zero, to half of the peak, none after the warm-up.
  budget: T is a fraction of the step hint, and the average's horizon of T.
  short_schedule: the learning rate's schedule ends at a fraction of T.
  """
  centre = _centre(submission.partition('_')[0])
  rate = centre['learning_rate']
  sweeps = {
    'learning_rate': [centre | {'learning_rate': r * rate} for r in RATES],
    'schedule': [centre | {'schedule': s} for s in SCHEDULES],
    'budget': [centre | {'step_hint_factor': b} for b in BUDGETS],
    'short_schedule': [centre | {'schedule_factor': b} for b in BUDGETS],
  }
  scheme = SUBMISSIONS[submission]
  if scheme != 'none':
    key, lengths = _LENGTHS[scheme]
    sweeps['horizon'] = [
      centre | {'averaging_every': EVERY, key: length} for length in lengths
    ]
    sweeps['cadence'] = [
      centre | {'averaging_every_steps': steps, key: length}
      for steps in EVERY_STEPS
      for length in lengths
    ]
  return sweeps


def files() -> dict[str, str]:
  """Text of every file, by its name."""
  return {
    f'{submission}-{sweep}.json': json.dumps(points, indent=2) + '\n'
    for submission in SUBMISSIONS
    for sweep, points in sweeps_of(submission).items()
  }


def main(argv: Sequence[str] | None = None) -> None:
  """Write all files."""
  parser = command_line.Parser(
    'python -m lab.launch.sweeps', description=__doc__
  )
  parser.formatter_class = command_line.Formatter
  parser.add_argument('--output', type=pathlib.Path, default=STUDY)
  output = parser.parse_args(argv).output
  command_line.check_writable(output)
  output.mkdir(parents=True, exist_ok=True)
  for name, text in files().items():
    (output / name).write_text(text, encoding='utf-8')
  print(f'{len(files())} files in {output}')


if __name__ == '__main__':
  command_line.run(main)
