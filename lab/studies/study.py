"""Steps to target of every average on every local workload.

`make study`, or `python -m lab.studies.study --workloads=click_dlrm --seeds=0
--output_dir=runs/study`: what is there already is replaced.

One run is trained for each optimizer, workload and seed, through the runner's
own loop, and several averagers follow it; each evaluation looks at every one.
Averaging never touches training, so each curve is, bit for bit, that of a run
of its own submission (tests/lab/studies/test_study.py), at a fraction of the
cost. Shampoo, grafted from Adam, trains at NadamW's tuned point as it is.
Finished runs are kept in --output_dir/runs.
"""

import os
import pathlib
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import app, flags

from lab.core import curves, logs, search_space
from lab.run import submissions
from lab.run.distributed import Context
from lab.run.settings import Settings
from lab.run.trial import Trial, TrialRun
from lab.studies import cached_runs
from lab.workloads import WORKLOADS, build_workload
from weightavg import AveragingConfig
from weightavg.pytorch import Averager

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPTIMIZERS = ('nadamw', 'shampoo')

# The submissions at their defaults, and with a horizon of 10 % of the budget; a
# polynomial average's horizon is 1 / (gamma + 1) of the steps so far.
CANDIDATES: dict[str, dict[str, Any]] = {
  'raw': {'averaging_scheme': 'none'},
  'lawa 1 %': {'averaging_scheme': 'lawa'},
  'lawa 10 %': {'averaging_scheme': 'lawa', 'averaging_horizon': 0.1},
  'ema 1 %': {'averaging_scheme': 'ema'},
  'ema 10 %': {'averaging_scheme': 'ema', 'averaging_horizon': 0.1},
  'polynomial 4': {'averaging_scheme': 'polynomial'},
  'polynomial 9': {'averaging_scheme': 'polynomial', 'averaging_power': 9.0},
}

_FLAGS = flags.FLAGS


class _Followed:
  """A bare submission, with averagers that look on after each step."""

  def __init__(
    self, path: str, candidates: Mapping[str, Mapping[str, Any]]
  ) -> None:
    self._module = submissions.load(str(ROOT / path)).module
    self._candidates = candidates
    self.averagers: dict[str, Averager] = {}

  def __getattr__(self, name: str) -> Any:
    return getattr(self._module, name)

  def init_optimizer_state(
    self,
    workload: Any,
    model_params: Any,
    model_state: Any,
    hyperparameters: Any,
    rng: Any,
  ) -> dict[str, Any]:
    """The submission's state; averagers are kept here, in no checkpoint."""
    state = self._module.init_optimizer_state(
      workload, model_params, model_state, hyperparameters, rng
    )
    budget = state['run'].config.schedule.budget(workload.step_hint)
    self.averagers = {
      name: Averager(model_params, AveragingConfig.from_point(**knobs), budget)
      for name, knobs in self._candidates.items()
    }
    return state

  def update_params(self, **kwargs: Any) -> tuple[Any, Any, Any]:
    """The submission's step, then every averager's."""
    result = self._module.update_params(**kwargs)
    for averager in self.averagers.values():
      averager.update()
    return result


class StudyRun(TrialRun):
  """A trial whose evaluations look at every average, at validation only.

  Args:
    trial: the trial.
    first_step: evaluations before this step are left out.
  """

  def __init__(self, trial: Trial, first_step: float = 0.0) -> None:
    super().__init__(trial, {})
    self._first_step = first_step
    self.curves: dict[str, list[list[float]]] = {}

  def _evaluate(self, rng: Any) -> None:
    trial, state = self.trial, self.state
    if state.global_step < self._first_step:
      return
    for name, averager in trial.submission.module.averagers.items():
      value = validated(self, averager, rng)
      self.curves.setdefault(name, []).append([state.global_step, value])


def validated(run: TrialRun, averager: Averager, rng: Any) -> float:
  """The target metric at validation of what an averager shows."""
  trial, state = run.trial, run.state
  with averager.evaluating():
    metrics = trial.workload._eval_model_on_split(
      'validation',
      trial.workload.num_validation_examples,
      trial.eval_batch_size,
      state.model_params,
      state.model_state,
      rng,
      trial.data_dir,
    )
  return float(metrics[trial.workload.target_metric_name])


def shampoo_point(point: Mapping[str, float]) -> dict[str, float]:
  """NadamW's point in Shampoo's terms.

  >>> shampoo_point({'learning_rate': 0.1, 'beta2': 0.75})
  {'learning_rate': 0.1, 'one_minus_beta2': 0.25}
  """
  rest = {key: value for key, value in point.items() if key != 'beta2'}
  return rest | {'one_minus_beta2': 1.0 - point['beta2']}


def trial_of(
  workload: Any,
  submission: submissions.Submission,
  settings: Settings,
  point: dict[str, Any],
  seed: int,
) -> Trial:
  """The trial that the runner would make of one point; makes its directory."""
  os.makedirs(settings.trial_dir(1), exist_ok=True)
  return Trial(
    workload=workload,
    submission=submission,
    settings=settings,
    context=Context(),
    hyperparameters=search_space.as_hyperparameters(point),
    rng_seed=seed,
    batch_size=workload.batch_size,
    eval_batch_size=workload.eval_batch_size,
    budget=workload.step_hint,
    eval_every=workload.eval_every_steps,
    directory=settings.trial_dir(1),
  )


def run(
  workload_name: str,
  seed: int,
  directory: str,
  optimizer: str = 'nadamw',
  candidates: Mapping[str, Mapping[str, Any]] = CANDIDATES,
  evaluated_from: float = 0.0,
) -> dict[str, Any]:
  """Train once and evaluate every candidate; the curves, by candidate.

  Args:
    workload_name: a local workload.
    seed: of the run; the same numbers as `lab.run --rng_seed`.
    directory: for the run's logs.
    optimizer: 'nadamw' or 'shampoo'.
    candidates: name to the knobs of its averager.
    evaluated_from: fraction of T before which nothing is evaluated.
  """
  workload = build_workload(workload_name)
  path = f'submissions/{optimizer}/submission.py'
  settings = Settings(
    workload=workload_name,
    submission_path=path,
    experiment_dir=directory,
    experiment_name=f'{optimizer}_{seed}',
    rng_seed=seed,
    run_to_budget=True,
    save_checkpoints=False,
  )
  (point,) = search_space.load(str(ROOT / workload.tuned_search_space), 1, seed)
  if optimizer == 'shampoo':
    point = shampoo_point(point)
  followed = submissions.Submission(path, _Followed(path, candidates))
  trial = trial_of(workload, followed, settings, point, seed)
  study_run = StudyRun(trial, evaluated_from * workload.step_hint)
  study_run.run()
  return {
    'optimizer': optimizer,
    'workload': workload_name,
    'seed': seed,
    'budget_steps': workload.step_hint,
    'target': workload.validation_target_value,
    'higher_is_better': workload.higher_is_better,
    'curves': study_run.curves,
  }


def rows_of(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """A row for each candidate of finished runs; ratios to NadamW's raw weights.

  Of the same workload and seed, that is; None where one did not arrive.
  """
  rows = []
  for result in results:
    for name, values in result['curves'].items():
      curve = [curves.Point(int(step), 0.0, value) for step, value in values]
      higher = result['higher_is_better']
      point = curves.first_at_target(curve, result['target'], higher)
      rows.append(
        {key: result[key] for key in ('optimizer', 'workload', 'seed')}
        | {
          'candidate': name,
          'target': result['target'],
          'steps_to_target': None if point is None else point.step,
          'best_validation': curves.best(curve, higher),
          'budget_steps': result['budget_steps'],
        }
      )
  plain = {
    (row['workload'], row['seed']): row['steps_to_target']
    for row in rows
    if (row['optimizer'], row['candidate']) == ('nadamw', 'raw')
  }
  for row in rows:
    steps, other = (
      row['steps_to_target'],
      plain.get((row['workload'], row['seed'])),
    )
    row['ratio_to_nadamw'] = steps / other if steps and other else None
  return rows


def median_ratio(rows: Iterable[Mapping[str, Any]]) -> float | None:
  """Median of the ratios; None if most runs did not reach the target."""
  # A run that never arrives is later than any that does.
  ratios = [
    float('inf') if r['ratio_to_nadamw'] is None else r['ratio_to_nadamw']
    for r in rows
  ]
  median = statistics.median(ratios)
  return None if median == float('inf') else median


def _cell(ratio: float | None) -> str:
  return '–' if ratio is None else f'{ratio:.2f}'


def _nadamw_cell(rows: Sequence[Mapping[str, Any]]) -> str:
  """Median of NadamW's own steps, and as a fraction of the budget."""
  arrived = [row['steps_to_target'] for row in rows if row['steps_to_target']]
  never = [float('inf')] * (len(rows) - len(arrived))
  median = statistics.median(arrived + never)
  if median == float('inf'):
    return f'not reached in {len(never)} of {len(rows)}'
  return f'{median:g} ({median / rows[0]["budget_steps"]:.2f})'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Markdown: NadamW's steps, and ratios to them by optimizer and workload."""
  lines = [
    '| workload | NadamW, steps (of T) | optimizer | '
    + ' | '.join(CANDIDATES)
    + ' |',
    '|---' * (len(CANDIDATES) + 3) + '|',
  ]
  for optimizer in OPTIMIZERS:
    own = [row for row in rows if row['optimizer'] == optimizer]
    for workload in [*sorted({row['workload'] for row in own}), None]:
      chosen = [row for row in own if workload in (None, row['workload'])]
      if not chosen:
        continue
      ratios = [
        median_ratio(row for row in chosen if row['candidate'] == name)
        for name in CANDIDATES
      ]
      plain = [
        row
        for row in rows
        if (row['optimizer'], row['candidate']) == ('nadamw', 'raw')
        and row['workload'] == workload
      ]
      cells = [
        workload or '**median of all runs**',
        _nadamw_cell(plain) if plain else '',
        optimizer,
        *map(_cell, ratios),
      ]
      lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def _run_job(job: cached_runs.Job, directory: str) -> dict[str, Any]:
  return run(job['workload'], job['seed'], directory, job['optimizer'])


def jobs(
  optimizers: Sequence[str], workloads: Sequence[str], seeds: Sequence[int]
) -> list[cached_runs.Job]:
  """All runs, seed by seed."""
  return [
    {
      'name': f'{optimizer}_{name}_{seed}',
      'optimizer': optimizer,
      'candidates': CANDIDATES,
      'averaging_batch_norm': AveragingConfig().averaging_batch_norm,
      **job_of(name, seed),
    }
    for optimizer in optimizers
    for seed in seeds
    for name in workloads
  ]


def job_of(workload_name: str, seed: int) -> cached_runs.Job:
  """What every run depends on."""
  workload = build_workload(workload_name)
  return {
    'workload': workload_name,
    'seed': seed,
    'budget_steps': workload.step_hint,
    'target': workload.validation_target_value,
  }


def _define_flags() -> None:
  flags.DEFINE_list('optimizers', list(OPTIMIZERS), 'Which optimizers.')
  flags.DEFINE_list('workloads', sorted(WORKLOADS), 'Which workloads.')
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of the runs.')
  flags.DEFINE_integer('jobs', 2, 'Processes, one thread each.', 1)
  flags.DEFINE_string('output_dir', 'results/study', 'Where results go.')


def check_names(flag: str, given: Iterable[str], names: Iterable[str]) -> None:
  """End with one line if a flag names what does not exist."""
  given = list(given)
  for name in given:
    if given.count(name) > 1:
      sys.exit(f'Error: Invalid {flag}. {name} is given twice.')
    if name not in names:
      sys.exit(
        f'Error: Invalid {flag}={name}. Must be among {", ".join(names)}.'
      )


def seeds_of(given: Iterable[str]) -> list[int]:
  """The numbers of a flag; end with one line if one is none."""
  given = list(given)
  for text in given:
    if given.count(text) > 1:
      sys.exit(f'Error: Invalid seeds. {text} is given twice.')
    if not text.isdigit():
      sys.exit(f'Error: Invalid seeds={text}. Must be integers in [0, inf).')
  return [int(text) for text in given]


def main(argv: Sequence[str]) -> None:
  """Run what is missing; write study.json, print the table."""
  del argv
  allowed = {'optimizers': OPTIMIZERS, 'workloads': sorted(WORKLOADS)}
  for flag, names in allowed.items():
    check_names(flag, getattr(_FLAGS, flag), names)
  wanted = jobs(_FLAGS.optimizers, _FLAGS.workloads, seeds_of(_FLAGS.seeds))
  directory = os.path.join(_FLAGS.output_dir, 'runs')
  results = list(cached_runs.run_all(_run_job, wanted, directory, _FLAGS.jobs))
  results.sort(key=lambda r: (r['optimizer'], r['workload'], r['seed']))
  rows = rows_of(results)
  logs.write_json(os.path.join(_FLAGS.output_dir, 'study.json'), rows)
  print(table(rows))


if __name__ == '__main__':
  _define_flags()
  app.run(main)
