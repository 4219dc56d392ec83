"""Tune a method on a workload, as AlgoPerf tunes its baselines.

Quasi-random points over learning rate, 1 - beta1, 1 - beta2, weight decay,
warm-up and, where the workload has them, dropout and label smoothing train for
75 % of the step hint, T of the trial, with one seed. A method that trains at
its average has hyperparameters of its own in the place of some of these
(lab.studies.parts.methods), over the same ranges otherwise. Hopeless trials end
early (lab.studies.parts.search says when).

LAWA and EMA over several horizons and polynomial averages follow every trial of
NadamW and Shampoo: they are tuned on the same trials. For each kind of average,
and for the raw weights, the four trials with the best metric are trained again
with three other seeds, to the end. So is the incumbent, the point that was the
tuned one when the search began. The point and the average with the best mean
win. The one result of a trial of another method is the average that its
submission shows.

Writes search.json (ranges, rule, winners), trials.json (a row for each trial,
with its curves) and finals.json to results/tuning/<workload>_<method>/.
Finished trials are kept in its folder runs, from which a search is resumed,
with more trials if wanted; other ranges, and fewer trials, are refused. In a
clone, which has the rows but not the runs, trials are made again, and the rows
stay until there are as many new ones. --promote makes the
winning point of the raw weights, or of the shown average, the method's tuned
point on the workload. `table` makes a table of winners from search.json.
"""

import argparse
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.core import command_line, logs
from lab.core.errors import InputError
from lab.studies.parts import (
  costs,
  execution,
  search,
  search_folder,
  study,
  tuned,
)
from lab.studies.parts.finals import (
  FINALISTS,
  finalists,
  row_of,
  table,
  winners,
)
from lab.studies.parts.methods import METHODS, REGULARIZERS
from lab.studies.parts.training import Result, Training, tuned_path
from lab.studies.parts.trial_training import TrialTraining
from lab.studies.parts.tuned import kind_of
from lab.workloads import WORKLOADS, build_workload

BUDGET_FACTOR = 0.75
SEED, FINAL_SEEDS = 0, (1, 2, 3)


def training(
  workload: str,
  method: str,
  point: Mapping[str, Any],
  seed: int,
  limits: Sequence[float | None] = (None,) * len(search.RUNGS),
) -> Training:
  """Describe a trial; its result depends on no target."""
  return TrialTraining(
    workload=workload,
    submission=method,
    point=METHODS[method].point(point),
    seed=seed,
    follower=search.Trial,
    follows={'candidates': tuned.candidates(method), 'limits': list(limits)},
    budget_factor=BUDGET_FACTOR,
    needs_target=False,
  )


def used_ranges(
  workload: str, method: str, ranges: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
  """Return a method's ranges without regularizers that the workload lacks."""
  has = build_workload(workload).regularizers
  return {
    name: span
    for name, span in METHODS[method].ranges(ranges).items()
    if name in has or name not in REGULARIZERS
  }


def _points(
  method: str,
  ranges: Mapping[str, Mapping[str, Any]],
  number: int,
  used: Iterable[str],
) -> list[dict[str, Any]]:
  """Return the points of a search.

  They are drawn from the ranges of all workloads: a workload without dropout
  searches the same points otherwise.
  """
  names = list(used)
  own = METHODS[method].ranges(ranges)
  return [
    {name: point[name] for name in names}
    for point in search.points(own, number, SEED)
  ]


def estimate(
  workload: str,
  method: str,
  ranges: Mapping[str, Mapping[str, Any]],
  number: int,
  folder: pathlib.Path,
  jobs: int,
) -> str:
  """Say how many runs a search still needs at most, and how long they take."""
  record = _begin(workload, method, ranges, number, folder)
  points = _points(method, ranges, number, record['ranges'])
  runs = str(folder / 'runs')
  done: list[Result] = []
  trials: list[Training] = []
  for start in range(0, number, search.COHORT):
    # The limits of a cohort are not known before the last one is finished.
    limits = search.limits(done, record['higher_is_better'])
    cohort = [
      training(workload, method, point, SEED, limits)
      for point in points[start : start + search.COHORT]
    ]
    if trials:
      trials += cohort
      continue
    done += execution.finished(cohort, runs)
    trials += [t for t in cohort if execution.kept(t, runs) is None]
  if trials:
    kinds = {kind_of(name) for name in tuned.candidates(method)}
    best = points[: min(number, FINALISTS * len(kinds))]
  else:
    best = [points[i] for i in finalists(done)]
  known = record['incumbent']
  if known is not None and known not in best:
    best = [*best, known]
  again = [
    run
    for point in best
    for seed in FINAL_SEEDS
    if execution.kept(run := training(workload, method, point, seed), runs)
    is None
  ]
  return (
    f'{number} trials, of which {len(done)} are finished, and at most '
    f'{len(again)} runs of the best ones. The estimate counts whole trials; '
    'the median rule leaves about 0.7 of their steps.\n'
    f'{costs.describe([*trials, *again], jobs)}'
  )


def _begin(
  workload: str,
  method: str,
  ranges: Mapping[str, Mapping[str, Any]],
  number: int,
  folder: pathlib.Path,
) -> dict[str, Any]:
  """Return what a search begins with in search.json.

  Raises:
    InputError: the search in the folder cannot go on so.
  """
  local = build_workload(workload)
  record: dict[str, Any] = {
    'workload': workload,
    'method': method,
    'metric': local.target_metric_name,
    'higher_is_better': local.higher_is_better,
    'step_hint': local.step_hint,
    'ranges': used_ranges(workload, method, ranges),
    'seed': SEED,
    'budget_factor': BUDGET_FACTOR,
    'rungs': list(search.RUNGS),
    'cohort': search.COHORT,
  }
  begun = search_folder.read_record(folder)
  search_folder.check_same(folder, begun, record)
  search_folder.check_number(folder, begun, number)
  known = tuned.incumbent(workload, method, record['ranges'])
  return record | {'incumbent': begun.get('incumbent', known)}


def tune(
  workload: str,
  method: str,
  ranges: Mapping[str, Mapping[str, Any]],
  number: int,
  folder: pathlib.Path,
  jobs: int,
) -> dict[str, Any]:
  """Search, write the files and return the content of search.json.

  Args:
    workload: name of a local workload.
    method: key of METHODS.
    ranges: shared by all methods, of all workloads.
    number: of trials.
    folder: for the files and the finished runs.
    jobs: number of processes.

  Raises:
    InputError: the search in the folder was begun differently.
  """
  record = _begin(workload, method, ranges, number, folder)
  incumbent, higher = record['incumbent'], record['higher_is_better']
  path = folder / search_folder.SEARCH
  folder.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    logs.write_json(str(path), record)
  before = search_folder.number_of_rows(folder)
  runs = str(folder / 'runs')
  points = _points(method, ranges, number, record['ranges'])
  trials: list[Result] = []
  made: list[Training] = []
  for start in range(0, number, search.COHORT):
    limits = search.limits(trials, higher)
    cohort = [
      training(workload, method, point, SEED, limits)
      for point in points[start : start + search.COHORT]
    ]
    trials += execution.run_all(cohort, runs, jobs)
    made += cohort
    rows = [row_of(i, points[i], t) for i, t in enumerate(trials)]
    # Rows whose runs are elsewhere stay until these are as many.
    if len(rows) >= before:
      logs.write_rows(str(folder / search_folder.TRIALS), rows)
  chosen: list[tuple[int | str, dict[str, Any]]] = [
    (i, points[i]) for i in finalists(trials)
  ]
  if incumbent is not None and incumbent not in points:
    chosen.append(('incumbent', incumbent))
  again = [
    training(workload, method, point, seed)
    for _, point in chosen
    for seed in FINAL_SEEDS
  ]
  found = execution.run_all(again, runs, jobs)
  # Which runs there are follows from their results: it is known at the end.
  execution.warn_of_other_code([*made, *again], runs)
  size = len(FINAL_SEEDS)
  finals = [
    (name, point, found[size * place : size * (place + 1)])
    for place, (name, point) in enumerate(chosen)
  ]
  rows = [row_of(i, point, r) for i, point, rs in finals for r in rs]
  logs.write_rows(str(folder / search_folder.FINALS), rows)
  steps = sum(t['stopped'] or t['budget_steps'] for t in trials)
  full = sum(t['budget_steps'] for t in trials)
  record |= {
    'trials': number,
    'stopped_trials': sum(t['stopped'] is not None for t in trials),
    'fraction_of_steps': steps / full,
    'winners': winners(finals),
  }
  logs.write_json(str(path), record)
  return record


def _options(arguments: Sequence[str]) -> argparse.Namespace:
  parser = study.parser_of('tune', __doc__)
  parser.add_argument('--workload', required=True, help='a local workload')
  parser.add_argument('--method', required=True, help=' or '.join(METHODS))
  parser.add_argument('--trials', type=int, default=64, help='(%(default)s)')
  parser.add_argument(
    '--ranges',
    help='JSON file of shared ranges instead of those of '
    'lab.studies.parts.search',
  )
  parser.add_argument('--jobs', type=int, default=2, help='processes')
  parser.add_argument('--output_dir', type=pathlib.Path)
  parser.add_argument(
    '--report_only', action='store_true', help='print the winners, run nothing'
  )
  parser.add_argument(
    '--promote',
    action='store_true',
    help="make the winner the method's tuned point on the workload",
  )
  costs.add_flag(parser)
  options = parser.parse_args(arguments)
  for name, allowed in (('workload', sorted(WORKLOADS)), ('method', METHODS)):
    given = getattr(options, name)
    if given not in allowed:
      raise InputError(
        f'Invalid {name}={given!r}. Must be among {", ".join(allowed)}.'
      )
  if options.trials < 1:
    raise InputError(f'Invalid trials={options.trials}. Must be in [1, inf).')
  study.jobs_of(options.jobs)
  if options.output_dir is None:
    options.output_dir = tuned.folder(options.workload, options.method)
  return options


def main(arguments: Sequence[str]) -> None:
  """Search or report.

  Raises:
    InputError: an argument cannot be used, or the search in the folder was
      begun with others.
  """
  options = _options(arguments)
  ranges = search.RANGES
  if options.ranges is not None:
    ranges = search_folder.read_ranges(options.ranges)
  folder = options.output_dir
  if options.dry_run:
    print(
      estimate(
        options.workload,
        options.method,
        ranges,
        options.trials,
        folder,
        options.jobs,
      )
    )
    return
  if options.report_only:
    record = search_folder.read_record(folder)
    wanted = {'workload': options.workload, 'method': options.method}
    search_folder.check_same(folder, record, wanted)
    search_folder.number_of_rows(folder)  # raises for damaged ones
  else:
    command_line.check_writable(folder)
    record = tune(
      options.workload,
      options.method,
      ranges,
      options.trials,
      folder,
      options.jobs,
    )
  if 'winners' not in record:
    raise InputError(f'No finished search is in {folder}.')
  print(
    f'{record["trials"]} trials, {record["stopped_trials"]} stopped, '
    f'{record["fraction_of_steps"]:.2f} of all steps trained.\n\n'
    f'{table(record)}'
  )
  if options.promote:
    promote(record)


def promote(record: Mapping[str, Any]) -> None:
  """Write the winner as the method's tuned point on the workload.

  It is that of the raw weights, or of the average that the submission shows.
  """
  method = record['method']
  path = tuned_path(record['workload'], method)
  winner = record['winners'].get(tuned.result_of(method))
  if winner is None:
    raise InputError(
      f'Nothing to promote: no trial of {method} on {record["workload"]} ended '
      'with finite values.'
    )
  point = METHODS[method].point(winner['point'])
  logs.write_json(str(path), [point])
  print(f'Wrote {path}')
