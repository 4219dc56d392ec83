"""The billed share of refreshing BatchNorm's running statistics.

`nadamw_schedule_free` runs the model forward at its average every tenth step,
on the training batch, where the model has running statistics. Steps and
refreshes of one run are timed side by side, so that both see the same load of
the machine. Billed are the selection of data, the updates and the preparation
of evaluations, as in the benchmark.

Writes refreshing.json (one row) to results/primal/. The documentation's
sentence is made from it by `sentence`.
"""

import pathlib
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from lab.core import command_line, logs
from lab.core.errors import InputError
from lab.run import from_python
from lab.run.observers import Observer
from lab.studies.parts import study
from lab.studies.parts.frame import Row
from lab.studies.parts.training import ROOT, tuned_point
from lab.workloads import WORKLOADS, build_workload
from weightavg.pytorch import models
from weightavg.pytorch.profiling import Recorder, recording

WORKLOAD, METHOD = 'glyph_resnet', 'nadamw_schedule_free'
FILE = 'refreshing.json'
REFRESH = 'Running statistics'
BILLED = ('Data selection', 'Update parameters', 'Prepare for eval')


class Durations(Recorder):
  """Keeps every duration of every section, in seconds."""

  def __init__(self) -> None:
    super().__init__()
    self.all: dict[str, list[float]] = {}

  def add(self, name: str, seconds: float) -> None:
    """Count one call of the section `name`."""
    super().add(name, seconds)
    self.all.setdefault(name, []).append(seconds)


class _Unevaluated(Observer):
  """Leaves evaluations out; what prepares them is billed."""

  def instead_of_evaluation(self, run: Any, rng: Any) -> bool:
    """Replace the evaluation by nothing."""
    return True


def row_of(workload: str, durations: dict[str, list[float]]) -> Row:
  """Make the row of a run from the durations of its sections."""
  refreshes = durations[REFRESH]
  billed = sum(sum(durations.get(name, ())) for name in BILLED)
  steps = durations['Update parameters']
  step = (sum(steps) - sum(refreshes)) / len(steps)
  return {
    'workload': workload,
    'method': METHOD,
    'steps': len(steps),
    'refreshes': len(refreshes),
    'step_seconds': step,
    'refresh_seconds': statistics.fmean(refreshes),
    'median_step_seconds': statistics.median(steps),
    'median_refresh_seconds': statistics.median(refreshes),
    'share_of_billed': sum(refreshes) / billed,
  }


def measure(workload: str, steps: int, seed: int) -> Row:
  """Train for some steps and time their sections, on one thread."""
  torch.set_num_threads(1)
  durations = Durations()
  with tempfile.TemporaryDirectory() as folder, recording(durations):
    from_python.train(
      build_workload(workload),
      f'submissions/{METHOD}/submission.py',
      tuned_point(workload, METHOD),
      seed,
      str(pathlib.Path(folder, 'run')),
      [_Unevaluated()],
      steps,
    )
  return row_of(workload, durations.all)


def sentence(rows: Sequence[Row]) -> str:
  """Say what a refresh costs."""
  (row,) = rows
  return (
    f'On `{row["workload"]}` a refresh takes '
    f'{row["median_refresh_seconds"] / row["median_step_seconds"]:.2f} of the '
    f'time of a step (medians of {row["refreshes"]} and {row["steps"]}), and '
    f'{100 * row["share_of_billed"]:.1f} % of the billed time is refreshing.'
  )


def main(arguments: Sequence[str]) -> None:
  """Measure, write the row and print the sentence.

  Raises:
    InputError: an argument cannot be used.
  """
  parser = study.parser_of('refreshing', __doc__ or '')
  parser.add_argument('--workload', default=WORKLOAD, help='(%(default)s)')
  parser.add_argument('--steps', type=int, default=1000, help='(%(default)s)')
  parser.add_argument('--seed', type=int, default=0, help='(%(default)s)')
  parser.add_argument(
    '--output_dir', type=pathlib.Path, default=ROOT / 'results' / 'primal'
  )
  options = parser.parse_args(arguments)
  if options.workload not in WORKLOADS:
    raise InputError(
      f'Invalid workload={options.workload!r}. Must be among '
      f'{", ".join(sorted(WORKLOADS))}.'
    )
  if options.steps < 20:
    raise InputError(f'Invalid steps={options.steps}. Must be in [20, inf).')
  if options.seed < 0:
    raise InputError(f'Invalid seed={options.seed}. Must be in [0, inf).')
  model, _ = build_workload(options.workload).init_model_fn((0, 0))
  if not any(models.running_statistics(model)):
    raise InputError(
      f'Invalid workload={options.workload!r}. Its model has no running '
      'statistics.'
    )
  command_line.check_writable(options.output_dir)
  options.output_dir.mkdir(parents=True, exist_ok=True)
  rows = [measure(options.workload, options.steps, options.seed)]
  logs.write_rows(str(options.output_dir / FILE), rows)
  print(sentence(rows))
