r"""Replay public logs: where would a schedule end that the clock plans?

  python -m lab.launch.clock_replay --logs DIR --output results/algoperf

DIR holds AlgoPerf logs of self-tuning submissions,
<submission>/study_<s>/<workload>_<framework>/trial_1/eval_measurements.csv. For
each workload and framework, the step times between two evaluations are fed to
`weightavg.clock_plan` as if each had been measured. `before` is a cosine over
1.5 x step hint, as our self-tuning form had it; `after` is the plan. A schedule
that ends later than the time limit never ends. The plan sees no name.

A second table has other shares of the limit that the schedule is to end within,
over the runs whose T the clock limits.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
from collections.abc import Iterator, Sequence

from lab.core import atomic_files, command_line, logs
from lab.core.curves import step_of
from lab.core.errors import InputError
from lab.core.text_tables import text_table
from lab.launch import benchmark
from weightavg import clock_plan

FACTOR_BEFORE = 1.5
_SELF_TUNING_TIME = 1.5
UTILIZATIONS = (0.90, 0.93, 0.95, 0.97, 0.99)


@dataclasses.dataclass(frozen=True)
class Log:
  """One run of a public submission.

  Args:
    submission: Name of the submission.
    workload: Name of the workload.
    framework: 'jax' or 'pytorch'.
    marks: (step, seconds of submission time) of each evaluation, increasing.
  """

  submission: str
  workload: str
  framework: str
  marks: tuple[tuple[int, float], ...]

  def durations(self, steps: int) -> Iterator[float]:
    """Seconds of steps 1..steps; after the log's end as in its second half."""
    before = (0, 0.0)
    for mark in self.marks:
      mean = (mark[1] - before[1]) / (mark[0] - before[0])
      yield from itertools.repeat(mean, mark[0] - before[0])
      before = mark
    yield from itertools.repeat(self.late_mean(), max(0, steps - before[0]))

  def late_mean(self) -> float:
    """Mean seconds of a step in the second half of the log."""
    middle = self.marks[len(self.marks) // 2 - 1]
    last = self.marks[-1]
    return (last[1] - middle[1]) / (last[0] - middle[0])


@dataclasses.dataclass(frozen=True)
class Replay:
  """Result for one log; seconds are of submission time.

  Args:
    limit: Time limit, seconds.
    reached: Steps that fit into the limit.
    before: (step, seconds) at which the schedule over 1.5 x step hint ends.
    after: The same for the plan.
    first: T of the first plan, in steps.
    revisions: Number of times that T was planned.
  """

  log: Log
  limit: float
  reached: int
  before: tuple[int, float]
  after: tuple[int, float]
  first: int
  revisions: int


def read(path: pathlib.Path) -> Log | None:
  """Read a log, or return None if it has fewer than four evaluations.

  Raises:
    InputError: it cannot be read, or lacks a step or a time.
  """
  workload, _, framework = path.parents[1].name.rpartition('_')
  marks: list[tuple[int, float]] = []
  try:
    for line in logs.read_rows(str(path)).rows:
      step = step_of(line)
      # A run that was resumed repeats steps.
      while marks and marks[-1][0] >= step:
        marks.pop()
      marks.append((step, float(line['accumulated_submission_time'])))
  except (OSError, KeyError, ValueError) as error:
    raise InputError(f'Cannot read {path}: {error}.') from error
  if len(marks) < 4:
    return None
  return Log(path.parents[3].name, workload, framework, tuple(marks))


def replay(log: Log, utilization: float = clock_plan.UTILIZATION) -> Replay:
  """Feed a log's durations to the plan.

  Args:
    log: The run.
    utilization: Share of the time limit that the schedule is to end within.
  """
  facts = benchmark.BASES[log.workload]
  limit = _SELF_TUNING_TIME * facts.max_runtime_sec
  # A plan for a longer or shorter limit, which it multiplies by its own share.
  asked = limit * utilization / clock_plan.UTILIZATION
  plan = clock_plan.ClockPlan(facts.step_hint, asked)
  first, revisions = 0, 0
  end_before = round(FACTOR_BEFORE * facts.step_hint)
  seconds, reached = 0.0, 0
  ends: dict[str, tuple[int, float]] = {}
  for step, duration in enumerate(log.durations(10**9), 1):
    seconds += duration
    reached = step if seconds < limit else reached
    plan.add(duration)
    if plan.is_due:
      plan.revise(plan.measurement())
      first, revisions = first or plan.total, revisions + 1
    if step == end_before:
      ends['before'] = (step, seconds)
    if 'after' not in ends and step >= plan.total:
      ends['after'] = (step, seconds)
    if len(ends) == 2 and seconds >= limit:
      break
  return Replay(
    log, limit, reached, ends['before'], ends['after'], first, revisions
  )


HEADER = (
  'workload', 'framework', 'logs', 's/step', 'limit s', 'steps in limit',
  'before: step', 's', 'ends', 'after: step', 's', 'ends', 'T / step hint',
)  # fmt: skip


def row(replays: Sequence[Replay]) -> list[str]:
  """Format a line of the table: medians over the given logs."""
  log, limit = replays[0].log, replays[0].limit
  hint = benchmark.BASES[log.workload].step_hint

  def median(values: Sequence[float]) -> float:
    return statistics.median(values)

  after = median([r.after[0] for r in replays])
  cells = [
    log.workload,
    log.framework,
    str(len(replays)),
    f'{median([r.log.late_mean() for r in replays]):.3f}',
    f'{limit:.0f}',
    f'{median([r.reached for r in replays]):.0f}',
  ]
  for name in ('before', 'after'):
    ends = [getattr(r, name) for r in replays]
    in_time = sum(seconds < limit for _, seconds in ends)
    cells += [
      f'{median([step for step, _ in ends]):.0f}',
      f'{median([seconds for _, seconds in ends]):.0f}',
      f'{in_time} of {len(ends)}',
    ]
  return [*cells, f'{after / hint:.2f}']


def _last_evaluation(replay: Replay) -> float:
  """Seconds of the last evaluation; each waits for the end of a step."""
  facts = benchmark.BASES[replay.log.workload]
  period = facts.eval_period_sec + replay.log.late_mean()
  return period * (replay.limit // period)


UTILIZATION_HEADER = ('b', 'runs', 'ends in time', 'and is evaluated')


def utilization_row(share: float, replays: Sequence[Replay]) -> list[str]:
  """Format a line of the second table."""
  limited = [
    r for r in replays if r.after[0] < benchmark.BASES[r.log.workload].step_hint
  ]
  evaluated = [r for r in limited if r.after[1] < _last_evaluation(r)]
  in_time = sum(r.after[1] < r.limit for r in limited)
  return [f'{share:.2f}', *map(str, (len(limited), in_time, len(evaluated)))]


def _logs(folder: pathlib.Path) -> list[Log]:
  paths = sorted(folder.glob('*/study_*/*/trial_1/eval_measurements.csv'))
  found = [log for path in paths if (log := read(path)) is not None]
  if not found:
    raise InputError(
      f'Invalid logs={str(folder)!r}. Must hold <submission>/study_<s>/'
      '<workload>_<framework>/trial_1/eval_measurements.csv.'
    )
  scored = [log for log in found if log.workload in benchmark.SCORED]
  if not scored:
    raise InputError(
      f'Invalid logs={str(folder)!r}. Must hold workloads of AlgoPerf: '
      f'{", ".join(benchmark.SCORED)}.'
    )
  return scored


def main(argv: Sequence[str] | None = None) -> int:
  """Print the table, and write it beside all replays."""
  parser = command_line.Parser(
    'python -m lab.launch.clock_replay', description=__doc__
  )
  parser.formatter_class = command_line.Formatter
  parser.add_argument('--logs', type=pathlib.Path, required=True)
  parser.add_argument('--output', type=pathlib.Path, help='folder')
  values: argparse.Namespace = parser.parse_args(argv)
  if values.output is not None:
    command_line.check_writable(values.output)
  found = _logs(values.logs)
  groups: dict[tuple[str, str], list[Replay]] = {}
  for log in found:
    key = (log.workload, log.framework)
    groups.setdefault(key, []).append(replay(log))
  rows = [row(groups[key]) for key in sorted(groups)]
  print(text_table(list(HEADER), rows))
  shares = [
    utilization_row(share, [replay(log, share) for log in found])
    for share in UTILIZATIONS
  ]
  print(f'\n{text_table(list(UTILIZATION_HEADER), shares)}')
  if values.output is not None:
    values.output.mkdir(parents=True, exist_ok=True)
    everything = [
      dataclasses.asdict(dataclasses.replace(r, log=None))  # type: ignore[arg-type]
      | {
        'submission': r.log.submission,
        'workload': r.log.workload,
        'framework': r.log.framework,
        'seconds_per_step': r.log.late_mean(),
      }
      for replays in groups.values()
      for r in replays
    ]
    content = {'rows': rows, 'utilizations': shares, 'replays': everything}
    path = values.output / 'clock_replay.json'
    text = json.dumps(content, indent=1) + '\n'
    atomic_files.replace(str(path), lambda file: file.write(text))
  return 0


if __name__ == '__main__':
  command_line.run(main)
