"""See averaging work: four submissions on one workload, a table, a picture.

`make quickstart`, or `python -m lab.studies.quickstart`. NadamW, and NadamW
with LAWA, EMA and polynomial averages, train with the same seed, two at a time
with one thread each; everything goes to results/quickstart.
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from lab.core import curves as curves_module
from lab.core import logs
from lab.run import profile_report
from lab.workloads import QUICKSTART_WORKLOAD, build_workload

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'results' / 'quickstart'
SUBMISSIONS = ('nadamw', 'nadamw_lawa', 'nadamw_ema', 'nadamw_polynomial')
SEED = 0
_AT_ONCE = 2
_LINES_PER_RUN = 10


class RunFailed(Exception):
  """A run ended with an error; the message is its last line."""


@dataclasses.dataclass
class Run:
  """One submission's run, in a process of its own.

  Args:
    submission: Name of the submission's folder.
    workload: The workload; names the search space and the metric.
    results: Where everything goes.
    max_global_steps: Budget in steps; None for the workload's own.
  """

  submission: str
  workload: Any
  results: pathlib.Path
  max_global_steps: int | None = None
  process: subprocess.Popen | None = None
  reported: int = 0

  @property
  def budget(self) -> int:
    """Steps of the run."""
    return self.max_global_steps or self.workload.step_hint

  @property
  def trial(self) -> pathlib.Path:
    """Directory of the run's logs."""
    workload = f'{self.workload.name}_pytorch'
    return self.results / 'runs' / self.submission / workload / 'trial_1'

  @property
  def log(self) -> pathlib.Path:
    """What the run prints."""
    return self.results / 'runs' / f'{self.submission}.log'

  def start(self) -> None:
    """Start the process."""
    command = [
      *(sys.executable, '-m', 'lab.run'),
      f'--workload={self.workload.name}',
      f'--submission_path=submissions/{self.submission}/submission.py',
      f'--tuning_search_space={self.workload.tuned_search_space}',
      f'--experiment_dir={self.results / "runs"}',
      f'--experiment_name={self.submission}',
      f'--rng_seed={SEED}',
      '--overwrite',
      '--run_to_budget',
      '--nosave_intermediate_checkpoints',
    ]
    if self.max_global_steps is not None:
      command.append(f'--max_global_steps={self.max_global_steps}')
    self.log.parent.mkdir(parents=True, exist_ok=True)
    # One thread each: fair to all, and the same numbers on every machine.
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with open(self.log, 'w', encoding='utf-8') as file:
      self.process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=file, stdout=file
      )

  def points(self) -> list[curves_module.Point]:
    """Evaluations so far."""
    path = self.trial / logs.EVAL_MEASUREMENTS
    metric = f'validation/{self.workload.target_metric_name}'
    return curves_module.read_curve(str(path), metric) if path.exists() else []

  def is_over(self) -> bool:
    """Whether the process has ended.

    Raises:
      RunFailed: it ended with an error.
    """
    assert self.process is not None
    status = self.process.poll()
    if status:
      lines = self.log.read_text(encoding='utf-8').splitlines() or ['']
      raise RunFailed(f'{self.submission}: {lines[-1]} (see {self.log})')
    return status == 0

  def stop(self) -> None:
    """End the process if it still runs."""
    if self.process is not None and self.process.poll() is None:
      self.process.terminate()
      self.process.wait()


class _Display:
  """A bar over all runs on a terminal, else a line per tenth of a run."""

  def __init__(self, runs: list[Run]) -> None:
    self._bar: Any = None
    if sys.stderr.isatty():
      from tqdm import tqdm

      total = sum(run.budget for run in runs)
      self._bar = tqdm(total=total, unit='step', leave=False)
    self._runs = runs

  def show(self) -> None:
    """Look at the logs and report what is new."""
    done = 0
    for run in self._runs:
      points = run.points() if run.process is not None else []
      step = points[-1].step if points else 0
      done += step
      tenth = step * _LINES_PER_RUN // run.budget
      if self._bar is None and tenth > run.reported:
        run.reported = tenth
        print(
          f'{run.submission:<18} step {step:>6}/{run.budget}  '
          f'validation/{run.workload.target_metric_name} '
          f'{points[-1].value:.5f}',
          flush=True,
        )
    if self._bar is not None:
      self._bar.update(done - self._bar.n)

  def close(self) -> None:
    """Take the bar away."""
    if self._bar is not None:
      self._bar.close()


def run_all(runs: list[Run]) -> None:
  """Run all, two at a time, and show how far they are.

  Raises:
    RunFailed: a run ended with an error; the others are stopped.
  """
  display = _Display(runs)
  waiting, active = list(runs), list[Run]()
  try:
    while waiting or active:
      while waiting and len(active) < _AT_ONCE:
        active.append(waiting.pop(0))
        active[-1].start()
      time.sleep(0.5)
      active = [run for run in active if not run.is_over()]
      display.show()
  finally:
    for run in active:
      run.stop()
    display.close()


def row_of(run: Run) -> dict[str, Any]:
  """What summary.json says about a finished run."""
  higher = curves_module.higher_is_better(run.workload)
  target = run.workload.validation_target_value
  points = run.points()
  reached = curves_module.first_at_target(points, target, higher)
  return {
    'workload': run.workload.name,
    'submission': run.submission,
    'seed': SEED,
    'target': target,
    'steps_to_target': None if reached is None else reached.step,
    'seconds_to_target': None if reached is None else reached.seconds,
    'best_validation': curves_module.best(points, higher),
    'budget_steps': run.budget,
  }


def table_of(runs: list[Run]) -> str:
  """The table that the quickstart prints."""
  lines = []
  for run in runs:
    row = row_of(run)
    profile = logs.read_json(str(run.trial / 'profile.json'))
    averaging = profile_report.seconds(profile, 'Averaging', 'Swap')
    steps, seconds = row['steps_to_target'], row['seconds_to_target']
    lines.append(
      [
        run.submission,
        'not reached' if steps is None else f'{steps}',
        '' if steps is None else f'{100 * steps / run.budget:.0f} %',
        'not reached' if seconds is None else f'{seconds:.1f}',
        f'{row["best_validation"]:.5f}',
        f'{averaging:.2f}',
      ]
    )
  header = [
    'submission',
    'steps to target',
    'of budget',
    'seconds to target',
    'best validation',
    'averaging seconds',
  ]
  return curves_module.table(header, lines)


# Hollow and of different shapes: crossings at the same step stay visible.
_MARKERS = ('o', 's', 'D', '^')


def draw(runs: list[Run], path: pathlib.Path) -> None:
  """Validation metric against steps; on the right, where the target is met."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  workload = runs[0].workload
  higher = curves_module.higher_is_better(workload)
  target = workload.validation_target_value
  figure, panels = pyplot.subplots(1, 2, figsize=(12, 5), layout='constrained')
  curves = [run.points() for run in runs]
  crossings = [curves_module.first_at_target(c, target, higher) for c in curves]
  for axes in panels:
    for number, (points, crossing) in enumerate(
      zip(curves, crossings, strict=True)
    ):
      color = f'C{number}'
      steps, _, values = zip(*points, strict=True)
      axes.plot(steps, values, color=color, linewidth=1.4)
      if crossing is not None:
        axes.plot(
          [crossing.step],
          [crossing.value],
          _MARKERS[number],
          color=color,
          markerfacecolor='none',
          markeredgewidth=1.5,
          markersize=7 + 3 * number,
        )
    axes.axhline(target, color='0.4', linewidth=1, linestyle='--')
    axes.set_xlabel('step')
    axes.grid(color='0.92')
  whole, close = panels
  direction = 'higher' if higher else 'lower'
  name = workload.target_metric_name
  whole.set_ylabel(f'validation {name} ({direction} is better)')
  # The first tenth of training would flatten all that follows.
  _frame(whole, curves, target, runs[0].budget // 10, runs[0].budget)
  whole.set_xlim(0, runs[0].budget)
  whole.set_title(f'{workload.name}, seed {SEED}')
  reached = [c.step for c in crossings if c is not None]
  margin = max(1, runs[0].budget // 10)
  first = min(reached, default=runs[0].budget - 2 * margin) - margin
  last = max(reached, default=runs[0].budget) + margin // 2
  _frame(close, curves, target, first, min(last, runs[0].budget))
  close.set_title(f'around the target, {target:.5g}')
  handles = [
    pyplot.Line2D(
      [],
      [],
      color=f'C{number}',
      marker=_MARKERS[number],
      markerfacecolor='none',
      label=f'{run.submission}: '
      + ('not reached' if c is None else f'target at step {c.step}'),
    )
    for number, (run, c) in enumerate(zip(runs, crossings, strict=True))
  ]
  place = 'lower right' if higher else 'upper right'
  whole.legend(handles=handles, frameon=False, loc=place)
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _frame(
  axes: Any,
  curves: list[list[curves_module.Point]],
  target: float,
  first: int,
  last: int,
) -> None:
  """Show the steps from `first` to `last`, as high as the curves are there."""
  inside = [p.value for c in curves for p in c if first <= p.step <= last]
  low, high = min([*inside, target]), max([*inside, target])
  margin = 0.05 * (high - low) or 1e-3
  axes.set_xlim(first, last)
  axes.set_ylim(low - margin, high + margin)


def quickstart(
  workload: Any,
  results: pathlib.Path = RESULTS,
  max_global_steps: int | None = None,
) -> list[dict[str, Any]]:
  """Run the four submissions, write and print the results.

  Args:
    workload: A local workload.
    results: Folder to write to; its own earlier runs are replaced.
    max_global_steps: Budget in steps; None for the workload's own.

  Returns:
    The rows of summary.json.
  """
  start = time.monotonic()
  results.mkdir(parents=True, exist_ok=True)
  runs = [Run(s, workload, results, max_global_steps) for s in SUBMISSIONS]
  direction = (
    'at least' if curves_module.higher_is_better(workload) else 'at most'
  )
  print(
    f'{workload.name}: validation/{workload.target_metric_name} must be '
    f'{direction} {workload.validation_target_value:.5g}; '
    f'{runs[0].budget} steps, evaluated every {workload.eval_every_steps}, '
    f'seed {SEED}.',
    flush=True,
  )
  run_all(runs)
  rows = [row_of(run) for run in runs]
  logs.write_json(str(results / 'summary.json'), rows)
  draw(runs, results / 'curves.png')
  print(f'\n{table_of(runs)}\n')
  minutes = (time.monotonic() - start) / 60
  print(f'Took {minutes:.1f} minutes. Results, picture and logs: {results}')
  return rows


def main() -> None:
  """Run the quickstart workload."""
  try:
    quickstart(build_workload(QUICKSTART_WORKLOAD))
  except (RunFailed, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
  main()
