"""Estimate how long runs take before they are made."""

from collections.abc import Iterable

from lab.studies.claims.runs import Run
from lab.studies.parts.training import Training

# Seconds of a step at the workload's batch size, and of an evaluation of one
# average, in one process of a two-core x86 machine whose other core is busy.
STEP = {
  'click_dlrm': 0.0016,
  'denoise_unet': 0.0096,
  'glyph_resnet': 0.0056,
  'stdlib_lm': 0.0144,
}
SHAMPOO_STEP = {
  'click_dlrm': 0.0078,
  'denoise_unet': 0.0126,
  'glyph_resnet': 0.0099,
  'stdlib_lm': 0.0169,
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
  assert isinstance(training, Run)
  workload = training.build()
  table = SHAMPOO_STEP if training.submission == 'shampoo' else STEP
  step = table.get(training.workload, _UNKNOWN)
  step *= 1 - _BY_BATCH + _BY_BATCH * training.batch_factor
  follows = training.follows
  looks = workload.step_hint / workload.eval_every_steps
  looks *= (1 - follows['evaluated_from']) / follows.get('every', 1)
  averages = len(follows['candidates']) + len(follows.get('recomputed', ()))
  evaluation = EVALUATION.get(training.workload, _UNKNOWN)
  seconds = workload.step_hint * step + looks * averages * evaluation
  return seconds / 3600


def describe(runs: Iterable[Run], jobs: int) -> str:
  """Number of runs, and hours by workload and in all."""
  hours: dict[str, list[float]] = {}
  for run in runs:
    hours.setdefault(run.workload, []).append(hours_of(run))
  total = sum(map(sum, hours.values()))
  lines = [
    f'{workload}: {len(own)} runs, {sum(own):.1f} h'
    for workload, own in sorted(hours.items())
  ]
  lines.append(
    f'All: {sum(map(len, hours.values()))} runs, {total:.1f} h in one process, '
    f'about {total / jobs:.1f} h in {jobs}.'
  )
  return '\n'.join(lines)
