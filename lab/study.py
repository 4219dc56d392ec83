"""Steps to target of every average on every local workload.

`make study`, or `python -m lab.study --workloads=click_dlrm --seeds=0`.

One NadamW run is trained for each workload and seed, through the runner's own
loop, and several averagers follow it; each evaluation looks at every average in
turn. Averaging never touches training (tests/test_averagers.py), so each curve
is, bit for bit, that of a run of its own submission (tests/test_study.py), at a
fraction of the cost. Finished runs are kept in --output_dir/runs.
"""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from absl import app, flags, logging

from lab import logs, report, search_space, submissions
from lab.distributed import Context
from lab.settings import Settings
from lab.training import Trial, TrialRun
from lab.workloads import WORKLOADS, build_workload
from weightavg.config import AveragingConfig
from weightavg.pytorch import Averager

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUBMISSION = 'submissions/nadamw/submission.py'

# The four submissions at their defaults, and with a horizon of 10 % of the
# budget; a polynomial average's horizon is 1 / (gamma + 1) of the steps so far.
CANDIDATES: dict[str, dict[str, Any]] = {
  'nadamw': {'averaging_scheme': 'none'},
  'lawa 1 %': {'averaging_scheme': 'lawa'},
  'lawa 10 %': {'averaging_scheme': 'lawa', 'averaging_horizon': 0.1},
  'ema 1 %': {'averaging_scheme': 'ema'},
  'ema 10 %': {'averaging_scheme': 'ema', 'averaging_horizon': 0.1},
  'polynomial 4': {'averaging_scheme': 'polynomial'},
  'polynomial 9': {'averaging_scheme': 'polynomial', 'averaging_power': 9.0},
}

_FLAGS = flags.FLAGS


class _Followed:
  """The NadamW submission, with averagers that look on after each step."""

  def __init__(self, candidates: Mapping[str, Mapping[str, Any]]) -> None:
    self._module = submissions.load(str(ROOT / SUBMISSION)).module
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
    """NadamW's state; the averagers are kept here, in no checkpoint."""
    state = self._module.init_optimizer_state(
      workload, model_params, model_state, hyperparameters, rng
    )
    budget = state['run'].config.schedule.budget(workload.step_hint)
    self.averagers = {
      name: Averager(model_params, AveragingConfig(**knobs), budget)
      for name, knobs in self._candidates.items()
    }
    return state

  def update_params(self, **kwargs: Any) -> tuple[Any, Any, Any]:
    """NadamW's step, then every averager's."""
    result = self._module.update_params(**kwargs)
    for averager in self.averagers.values():
      averager.update()
    return result


class StudyRun(TrialRun):
  """A trial whose evaluations look at every average, at validation only."""

  def __init__(self, trial: Trial) -> None:
    super().__init__(trial, {})
    self.curves: dict[str, list[list[float]]] = {}

  def _evaluate(self, rng: Any) -> None:
    trial, state = self.trial, self.state
    metric = trial.workload.target_metric_name
    for name, averager in trial.submission.module.averagers.items():
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
      value = float(metrics[metric])
      self.curves.setdefault(name, []).append([state.global_step, value])


def run(
  workload_name: str,
  seed: int,
  directory: str,
  candidates: Mapping[str, Mapping[str, Any]] = CANDIDATES,
  max_steps: int | None = None,
) -> dict[str, Any]:
  """Train once and evaluate every candidate; the curves, by candidate.

  Args:
    workload_name: a local workload.
    seed: of the run; the same numbers as `lab.runner --rng_seed`.
    directory: for the run's logs.
    candidates: name to the knobs of its averager.
    max_steps: ends the run early; None: the step hint.
  """
  workload = build_workload(workload_name)
  settings = Settings(
    workload=workload_name,
    submission_path=SUBMISSION,
    experiment_dir=directory,
    experiment_name=f'seed_{seed}',
    rng_seed=seed,
    run_to_budget=True,
    save_checkpoints=False,
  )
  (point,) = search_space.load(str(ROOT / workload.tuned_search_space), 1, seed)
  followed = _Followed(candidates)
  os.makedirs(settings.trial_dir(1), exist_ok=True)
  trial = Trial(
    workload=workload,
    submission=submissions.Submission(SUBMISSION, followed),
    settings=settings,
    context=Context(),
    hyperparameters=search_space.as_hyperparameters(point),
    rng_seed=seed,
    batch_size=followed.get_batch_size(workload_name),
    eval_batch_size=workload.eval_batch_size,
    budget=max_steps or workload.step_hint,
    eval_every=workload.eval_every_steps,
    directory=settings.trial_dir(1),
  )
  study_run = StudyRun(trial)
  study_run.run()
  return {
    'workload': workload_name,
    'seed': seed,
    'budget_steps': workload.step_hint,
    'target': workload.validation_target_value,
    'higher_is_better': workload.higher_is_better,
    'curves': study_run.curves,
  }


def rows_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  """One row for each candidate of a finished run."""
  higher = result['higher_is_better']
  curves = {
    name: [report.Point(int(step), 0.0, value) for step, value in curve]
    for name, curve in result['curves'].items()
  }
  reached = {}
  for name, curve in curves.items():
    point = report.first_at_target(curve, result['target'], higher)
    reached[name] = None if point is None else point.step
  rows = []
  for name, curve in curves.items():
    steps, plain = reached[name], reached['nadamw']
    rows.append(
      {
        'workload': result['workload'],
        'seed': result['seed'],
        'candidate': name,
        'target': result['target'],
        'steps_to_target': steps,
        'ratio_to_nadamw': steps / plain if steps and plain else None,
        'best_validation': report.best(curve, higher),
        'budget_steps': result['budget_steps'],
      }
    )
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


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Markdown: NadamW's steps, then each candidate's ratio, by workload."""
  candidates = [name for name in CANDIDATES if name != 'nadamw']
  workloads = sorted({row['workload'] for row in rows})
  lines = [
    '| workload | NadamW, steps (of T) | ' + ' | '.join(candidates) + ' |',
    '|---' * (len(candidates) + 2) + '|',
  ]

  def of(name: str, workload: str | None = None) -> list[Mapping[str, Any]]:
    return [
      row
      for row in rows
      if row['candidate'] == name and workload in (None, row['workload'])
    ]

  for workload in workloads:
    plain = of('nadamw', workload)
    reached = [row['steps_to_target'] for row in plain]
    known = sorted(steps for steps in reached if steps)
    cell = 'not reached'
    if len(known) > len(reached) / 2:
      steps = statistics.median_low(known + [10**9] * reached.count(None))
      cell = f'{steps} ({steps / plain[0]["budget_steps"]:.2f})'
    ratios = [median_ratio(of(name, workload)) for name in candidates]
    cells = [cell] + ['–' if r is None else f'{r:.2f}' for r in ratios]
    lines.append(f'| {workload} | ' + ' | '.join(cells) + ' |')
  overall = [median_ratio(of(name)) for name in candidates]
  cells = ['–' if r is None else f'{r:.2f}' for r in overall]
  lines.append('| **median of all runs** | | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def _cached_run(workload: str, seed: int, output_dir: str) -> dict[str, Any]:
  torch.set_num_threads(1)
  logging.set_verbosity(logging.WARNING)
  path = pathlib.Path(output_dir, 'runs', f'{workload}_{seed}.json')
  if path.exists():
    return json.loads(path.read_text())
  result = run(workload, seed, str(path.parent))
  logs.write_json(str(path), result)
  return result


def _define_flags() -> None:
  flags.DEFINE_list('workloads', sorted(WORKLOADS), 'Which workloads.')
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of the runs.')
  flags.DEFINE_integer('jobs', 2, 'Processes, one thread each.', 1)
  flags.DEFINE_string('output_dir', 'results/study', 'Where results go.')


def main(argv: Sequence[str]) -> None:
  """Run what is missing; write study.json, print the table."""
  del argv
  for name in _FLAGS.workloads:
    if name not in WORKLOADS:
      sys.exit(
        f'Error: Invalid workload={name!r}. Must be one of '
        f'{", ".join(sorted(WORKLOADS))}.'
      )
  jobs = [(w, int(s)) for s in _FLAGS.seeds for w in _FLAGS.workloads]
  rows = []
  # spawn: a forked child would inherit torch's thread pool, half dead.
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(
    _FLAGS.jobs, mp_context=context
  ) as pool:
    futures = [
      pool.submit(_cached_run, *job, _FLAGS.output_dir) for job in jobs
    ]
    for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
      result = future.result()
      rows += rows_of(result)
      print(
        f'[{done}/{len(jobs)}] {result["workload"]} seed {result["seed"]}',
        flush=True,
      )
  rows.sort(key=lambda r: (r['workload'], r['seed']))
  logs.write_json(os.path.join(_FLAGS.output_dir, 'study.json'), rows)
  print(table(rows))


if __name__ == '__main__':
  _define_flags()
  app.run(main)
