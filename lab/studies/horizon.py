"""Which horizon reaches the target first: `make horizon`.

For each local workload and seed NadamW is trained once, as in
`lab.studies.study`, with LAWA and EMA of several horizons following it. Written
to --output_dir are horizon.json, one row for each workload, seed, scheme and
horizon, and horizon.png, steps to target against the horizon as a fraction of T
with a second-order fit in its logarithm. Where the model has BatchNorm,
averages that leave running statistics alone follow, too. Finished runs are kept
in its folder runs.
"""

import itertools
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from lab.core import curves, logs
from lab.studies import cached_runs, study
from lab.workloads import WORKLOADS, build_workload
from weightavg.pytorch import models
from weightavg.schemes.base import DEFAULT_HORIZON

SCHEMES = ('lawa', 'ema')
# Horizon to cadence, both fractions of T: never more than twenty samples, so
# that many windows fit beside each other; 1 % as submissions have it.
GRID = {
  0.005: 0.001,
  0.01: 0.002,
  0.02: 0.002,
  0.05: 0.005,
  0.1: 0.005,
  0.2: 0.01,
}
# No average is at the target earlier; a row that says so is marked.
EVALUATED_FROM = 0.4

_FLAGS = flags.FLAGS
Row = dict[str, Any]


def candidates(has_statistics: bool = False) -> dict[str, dict[str, Any]]:
  """NadamW, and every scheme at every horizon.

  Args:
    has_statistics: whether the model has running statistics; then with those
      averaged and with the live model's.
  """
  found: dict[str, dict[str, Any]] = {'none': {'averaging_scheme': 'none'}}
  for scheme in SCHEMES:
    for horizon, every in GRID.items():
      knobs = {
        'averaging_scheme': scheme,
        'averaging_horizon': horizon,
        'averaging_every': every,
      }
      found[f'{scheme} {horizon}'] = knobs
      if has_statistics:
        current = {'averaging_batch_norm': 'current'}
        found[f'{scheme} {horizon} current'] = knobs | current
  return found


def _candidates_of(workload_name: str) -> dict[str, dict[str, Any]]:
  model, _ = build_workload(workload_name).init_model_fn((0, 0))
  return candidates(any(models.running_statistics(model)))


def rows_of(result: Mapping[str, Any]) -> list[Row]:
  """Rows of one run; NadamW's own has the scheme 'none' and no horizon."""
  reached = {}
  for name, curve in result['curves'].items():
    points = [curves.Point(int(step), 0.0, value) for step, value in curve]
    point = curves.first_at_target(
      points, result['target'], result['higher_is_better']
    )
    # At the very first evaluation it may have been there for long.
    early = point is not None and point.step == points[0].step
    reached[name] = (point.step if point else None, early)
  plain = reached['none'][0]
  rows = []
  every_candidate = candidates(has_statistics=True)
  for name, (steps, early) in reached.items():
    knobs = every_candidate[name]
    rows.append(
      {
        'workload': result['workload'],
        'seed': result['seed'],
        'scheme': knobs['averaging_scheme'],
        'horizon': knobs.get('averaging_horizon'),
        'every': knobs.get('averaging_every'),
        'batch_norm': knobs.get('averaging_batch_norm'),
        'steps_to_target': steps,
        'ratio_to_nadamw': steps / plain if steps and plain else None,
        'fraction_of_budget': steps / result['budget_steps'] if steps else None,
        'at_first_evaluation': early,
      }
    )
  return rows


def median(rows: Iterable[Mapping[str, Any]], key: str) -> float | None:
  """Median over runs; one that never arrives is later than all others."""
  values = [math.inf if r[key] is None else r[key] for r in rows]
  middle = statistics.median(values) if values else math.inf
  return None if math.isinf(middle) else middle


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
  """Rows whose columns have the given values."""
  return [r for r in rows if all(r[k] == v for k, v in wanted.items())]


def fit(rows: Iterable[Mapping[str, Any]], key: str) -> np.ndarray | None:
  """Second-order polynomial in log10 of the horizon; None below 3 horizons."""
  known = [(r['horizon'], r[key]) for r in rows if r[key] is not None]
  if len({horizon for horizon, _ in known}) < 3:
    return None
  x, y = np.log10([h for h, _ in known]), [value for _, value in known]
  return np.polyfit(x, y, 2)


def fitted_best(coefficients: np.ndarray) -> float | None:
  """Horizon at the fit's minimum; None where it has none inside the grid."""
  a, b, _ = coefficients
  if a <= 0:
    return None
  best = 10 ** (-b / (2 * a))
  return float(best) if min(GRID) <= best <= max(GRID) else None


def best_horizon(rows: Sequence[Row]) -> tuple[float, float] | None:
  """Horizon of the smallest median ratio (the shortest of equal ones)."""
  medians = [
    (median(select(rows, horizon=horizon), 'ratio_to_nadamw'), horizon)
    for horizon in GRID
  ]
  found = [(ratio, h) for ratio, h in medians if ratio is not None]
  if not found:
    return None
  ratio, horizon = min(found)
  return horizon, ratio


def by_default(rows: Iterable[Row]) -> list[Row]:
  """Without the averages that leave running statistics alone."""
  return select(rows, batch_norm=None)


def statistics_table(rows: Sequence[Row]) -> str:
  """Markdown: ratios with and without averaged running statistics."""
  header = ['workload', 'scheme', 'running statistics']
  header += [f'{100 * horizon:g} %' for horizon in GRID]
  lines = ['| ' + ' | '.join(header) + ' |', '|---' * len(header) + '|']
  both = {row['workload'] for row in select(rows, batch_norm='current')}
  for workload, scheme, how in itertools.product(
    sorted(both), SCHEMES, (None, 'current')
  ):
    mine = select(rows, workload=workload, scheme=scheme, batch_norm=how)
    if not mine:
      continue  # not measured
    cells = [workload, scheme, how or 'averaged']
    for horizon in GRID:
      ratio = median(select(mine, horizon=horizon), 'ratio_to_nadamw')
      cells.append('–' if ratio is None else f'{ratio:.2f}')
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def table(rows: Sequence[Row]) -> str:
  """Markdown: the default and the best horizon side by side."""
  rows = by_default(rows)
  lines = [
    '| workload | scheme | ratio at 1 % | best ratio | best horizon | '
    "fit's minimum |",
    '|---|---|---|---|---|---|',
  ]
  names = sorted({row['workload'] for row in rows})
  for workload, scheme in [(w, s) for w in names for s in SCHEMES]:
    mine = select(rows, workload=workload, scheme=scheme)
    default = median(select(mine, horizon=DEFAULT_HORIZON), 'ratio_to_nadamw')
    best = best_horizon(mine)
    curve = fit(mine, 'ratio_to_nadamw')
    bottom = None if curve is None else fitted_best(curve)
    cells = [
      '–' if default is None else f'{default:.2f}',
      '–' if best is None else f'{best[1]:.2f}',
      '–' if best is None else f'{100 * best[0]:g} %',
      'none inside' if bottom is None else f'{100 * bottom:.1f} %',
    ]
    lines.append(f'| {workload} | {scheme} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def draw(rows: Sequence[Row], path: str) -> None:
  """One panel a workload: runs as dots, fits as lines, NadamW dashed."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  rows = by_default(rows)
  names = sorted({row['workload'] for row in rows})
  figure, axes = pyplot.subplots(
    1, len(names), figsize=(3.4 * len(names), 3.2), squeeze=False
  )
  grid = np.geomspace(min(GRID), max(GRID), 100)
  for axis, workload in zip(axes[0], names, strict=True):
    for scheme, color in zip(SCHEMES, ('tab:blue', 'tab:orange'), strict=True):
      mine = select(rows, workload=workload, scheme=scheme)
      known = [r for r in mine if r['fraction_of_budget'] is not None]
      axis.plot(
        [r['horizon'] for r in known],
        [r['fraction_of_budget'] for r in known],
        'o',
        color=color,
        alpha=0.5,
        markersize=4,
      )
      curve = fit(mine, 'fraction_of_budget')
      if curve is not None:
        axis.plot(
          grid,
          np.polyval(curve, np.log10(grid)),
          color=color,
          label=scheme.upper(),
        )
    plain = median(
      select(rows, workload=workload, scheme='none'), 'fraction_of_budget'
    )
    if plain is not None:
      axis.axhline(plain, color='black', linestyle='--', label='NadamW')
    axis.axvline(DEFAULT_HORIZON, color='gray', linewidth=0.5)
    axis.set(xscale='log', title=workload, xlabel='horizon, fraction of T')
  axes[0][0].set_ylabel('steps to target, fraction of T')
  axes[0][0].legend(fontsize='small')
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _run_job(job: cached_runs.Job, directory: str) -> dict[str, Any]:
  return study.run(
    job['workload'],
    job['seed'],
    directory,
    candidates=job['candidates'],
    evaluated_from=EVALUATED_FROM,
  )


def jobs(
  workloads: Sequence[str], seeds: Sequence[int]
) -> list[cached_runs.Job]:
  """All runs, seed by seed."""
  return [
    {
      'name': f'{name}_{seed}',
      'candidates': _candidates_of(name),
      'evaluated_from': EVALUATED_FROM,
      **study.job_of(name, seed),
    }
    for seed in seeds
    for name in workloads
  ]


def _define_flags() -> None:
  flags.DEFINE_list('workloads', sorted(WORKLOADS), 'Which workloads.')
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of the runs.')
  flags.DEFINE_integer('jobs', 2, 'Processes, one thread each.', 1)
  flags.DEFINE_string('output_dir', 'results/horizon', 'Where results go.')


def main(argv: Sequence[str]) -> None:
  """Run what is missing; write horizon.json and horizon.png."""
  del argv
  study.check_names('workloads', _FLAGS.workloads, sorted(WORKLOADS))
  wanted = jobs(_FLAGS.workloads, study.seeds_of(_FLAGS.seeds))
  directory = os.path.join(_FLAGS.output_dir, 'runs')
  rows: list[Row] = []
  for result in cached_runs.run_all(_run_job, wanted, directory, _FLAGS.jobs):
    rows += rows_of(result)
  rows.sort(key=lambda r: (r['workload'], r['seed']))
  os.makedirs(_FLAGS.output_dir, exist_ok=True)
  logs.write_json(os.path.join(_FLAGS.output_dir, 'horizon.json'), rows)
  draw(rows, os.path.join(_FLAGS.output_dir, 'horizon.png'))
  print(table(rows))
  print(statistics_table(rows))


if __name__ == '__main__':
  _define_flags()
  app.run(main)
