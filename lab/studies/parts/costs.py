"""Estimate how long runs take before they are made."""

import argparse
from collections.abc import Iterable, Sequence

from lab.studies.parts import execution
from lab.studies.parts.search import RUNGS, Trial
from lab.studies.parts.training import Training
from lab.workloads import build_workload

# Seconds of a step at the workload's batch size, and of an evaluation of one
# average, in one process of a two-core x86 machine whose other core is busy.
STEP = {
  'click_dlrm': 0.0016,
  'denoise_unet': 0.0096,
  'glyph_resnet': 0.0056,
  'stdlib_lm': 0.0144,
}
SHAMPOO_STEP = {
  'click_dlrm': 0.034,
  'denoise_unet': 0.025,
  'glyph_resnet': 0.020,
  'stdlib_lm': 0.022,
}
EVALUATION = {
  'click_dlrm': 0.014,
  'denoise_unet': 0.22,
  'glyph_resnet': 0.13,
  'stdlib_lm': 0.065,
}
# Of a step, the part that grows with the batch.
_BY_BATCH = 0.7
_UNKNOWN = 0.01


def hours_of(training: Training) -> float:
  """Hours of a run in one process."""
  workload = training.build()
  is_shampoo = training.submission.startswith('shampoo')
  table = SHAMPOO_STEP if is_shampoo else STEP
  step = table.get(training.workload, _UNKNOWN)
  batch = workload.batch_size / build_workload(training.workload).batch_size
  step *= 1 - _BY_BATCH + _BY_BATCH * batch
  follows = training.follows
  start, every = follows.get('evaluated_from', 0.0), follows.get('every', 1)
  if issubclass(training.follower, Trial):
    start, every = RUNGS[0], 2
  steps = training.steps_of(workload)
  looks = steps / workload.eval_every_steps * (1 - start) / every
  averages = len(follows.get('candidates', (1,)))
  averages += len(follows.get('recomputed', ()))
  evaluation = EVALUATION.get(training.workload, _UNKNOWN)
  return (steps * step + looks * averages * evaluation) / 3600


def describe(runs: Iterable[Training], jobs: int) -> str:
  """Number of runs, and core-minutes by workload and in all."""
  minutes: dict[str, list[float]] = {}
  for run in runs:
    minutes.setdefault(run.workload, []).append(60 * hours_of(run))
  total = sum(map(sum, minutes.values()))
  lines = [
    f'{workload}: {len(own)} runs, {sum(own):.0f} core-minutes'
    for workload, own in sorted(minutes.items())
  ]
  lines.append(
    f'All: {sum(map(len, minutes.values()))} runs, {total:.0f} core-minutes, '
    f'about {total / 60 / jobs:.1f} h in {jobs} processes.'
  )
  return '\n'.join(lines)


def describe_missing(
  runs: Sequence[Training], directory: str, jobs: int
) -> str:
  """Number of runs, and what those cost that `directory` does not keep yet.

  A last line says if runs that it keeps were trained by other code.
  """
  missing = [run for run in runs if execution.kept(run, directory) is None]
  text = f'{len(runs)} runs, of which are missing:\n{describe(missing, jobs)}'
  note = execution.note_on_code(runs, directory)
  return text if note is None else f'{text}\n{note}'


def add_flag(parser: argparse.ArgumentParser) -> None:
  """Add --dry_run."""
  parser.add_argument(
    '--dry_run',
    action='store_true',
    help='print how many runs are missing, and how long they take, and end',
  )
