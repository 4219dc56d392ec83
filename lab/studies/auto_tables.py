"""The study of the choice among averages as Markdown.

What `auto_report` says about runs that never arrive holds here: such a
difference is shown as ∞ or -∞, and an unknown one as –.
"""

import math
from collections.abc import Iterable, Sequence

from lab.studies.auto_report import (
  AUTO,
  BEHIND_NADAMW,
  DEFAULT,
  NADAMW,
  NEAR_BEST,
  TUNED,
  Row,
  Setting,
  Study,
  difference,
  label_of,
  middle,
)

# Fractions of T are not exact in binary.
_ROUNDING = 1e-9


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
  """A table."""
  rule = ['---'] * len(header)
  rows = [header, rule, *lines]
  return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in rows)


def _signed(value: float | None) -> str:
  """A difference of fractions of T."""
  if value is None:
    return '–'
  if math.isinf(value):
    return '∞' if value > 0 else '-∞'
  return '0' if abs(value) < _ROUNDING else f'{value:+.2f}'


def _largest(values: Sequence[float]) -> float | None:
  return max(values, default=None)


def time_cell(study: Study, setting: Setting, name: str) -> str:
  """Median over seeds; how many arrived, if not all."""
  times = study.times[setting].get(name)
  if times is None:
    return '–'
  median = middle(times.values())
  arrived = sum(map(math.isfinite, times.values()))
  text = 'not reached' if math.isinf(median) else f'{median:.2f}'
  if median == study.first_look.get(setting):
    text = f'≤ {text}'
  return (
    text if arrived == len(times) else f'{text} ({arrived} of {len(times)})'
  )


def _within(values: Sequence[float], limit: float) -> int:
  return sum(value <= limit + _ROUNDING for value in values)


def _tuned(study: Study) -> list[Setting]:
  return sorted(s for s in study.times if s[1:] == TUNED)


def extent(rows: Sequence[Row]) -> str:
  """How much of the study there is, and how fine its numbers are."""
  study = Study.of(rows)
  seeds = [len(by_name[AUTO]) for by_name in study.times.values()]
  least, most = min(seeds), max(seeds)
  number = f'{most}' if least == most else f'{least} to {most}'
  every = {row['evaluated_every'] / row['budget_steps'] for row in rows}
  grid = ' or '.join(f'{value:g}' for value in sorted(every))
  return (
    f'{sum(seeds)} runs at {len(study.times)} settings (a workload, a learning '
    f'rate and a schedule), each with {number} seed{"s" * (most > 1)}. '
    f'Evaluations come every {grid} of T, so that differences are multiples '
    'of it.'
  )


def verdicts(rows: Sequence[Row]) -> str:
  """The numbers to reach, what was found, and whether that reaches them."""
  study = Study.of(rows)
  tuned = [
    (difference(study.median(s, AUTO), study.best_fixed(s)), s[0])
    for s in _tuned(study)
  ]
  known = [(gap, name) for gap, name in tuned if gap is not None]
  at_tuned = max(known, default=None)
  gaps = study.gaps(AUTO)
  late = study.differences(AUTO, NADAMW)
  ahead = study.differences(AUTO, DEFAULT)
  median = middle(ahead) if ahead else None
  lines = [
    [
      f'within {NEAR_BEST:g} of the best fixed candidate in hindsight on each '
      'workload, tuned learning rate, cosine, median over seeds',
      '–'
      if at_tuned is None
      else f'at most {_signed(at_tuned[0])} ({at_tuned[1]})',
      _verdict(at_tuned and at_tuned[0], NEAR_BEST),
    ],
    [
      'the same at every learning rate and schedule',
      f'at most {_signed(_largest(gaps))}; within it at '
      f'{_within(gaps, NEAR_BEST)} of {len(gaps)} settings where any arrives',
      _verdict(_largest(gaps), NEAR_BEST),
    ],
    [
      f'never more than {BEHIND_NADAMW:g} later than NadamW',
      f'at most {_signed(_largest(late))}; within it in '
      f'{_within(late, BEHIND_NADAMW)} of {len(late)} runs where either '
      'arrives',
      _verdict(_largest(late), BEHIND_NADAMW),
    ],
    [
      f'ahead of {label_of(DEFAULT)} in the median over the runs where either '
      'arrives',
      f'{_signed(median)}; {_counts(ahead)}',
      # Ahead: a tie is a miss.
      _verdict(median, -2 * _ROUNDING),
    ],
  ]
  return markdown(['to reach, fractions of T', 'found', ''], lines)


def _verdict(value: float | None, limit: float) -> str:
  if value is None:
    return 'unknown'
  return 'reached' if value <= limit + _ROUNDING else '**missed**'


def _counts(differences: Sequence[float]) -> str:
  earlier = sum(value < -_ROUNDING for value in differences)
  later = sum(value > _ROUNDING for value in differences)
  same = len(differences) - earlier - later
  return f'earlier {earlier}, same {same}, later {later}'


def steps(rows: Sequence[Row]) -> str:
  """At the tuned learning rate with a cosine to zero, by workload."""
  study = Study.of(rows)
  names = [*study.fixed, AUTO]
  lines = []
  for setting in _tuned(study):
    gap = difference(study.median(setting, AUTO), study.best_fixed(setting))
    lines.append(
      [
        setting[0],
        str(len(study.times[setting][AUTO])),
        *(time_cell(study, setting, name) for name in names),
        _signed(gap),
      ]
    )
  header = ['workload', 'seeds', *map(label_of, names), 'auto - best fixed']
  return markdown(header, lines)


def gaps(rows: Sequence[Row]) -> str:
  """Median over seeds against the best in hindsight: median, largest, within.

  Over the settings of each workload, and of all.
  """
  study = Study.of(rows)
  lines = []
  for name in [*study.fixed, *study.choosers]:
    cells = [label_of(name)]
    for workload in [*study.workloads, None]:
      found = study.gaps(name, workload)
      cells.append(
        f'{_signed(middle(found))} / {_signed(max(found))} / '
        f'{_within(found, NEAR_BEST)} of {len(found)}'
        if found
        else '–'
      )
    lines.append(cells)
  return markdown(['candidate', *study.workloads, 'all'], lines)


def comparison(rows: Sequence[Row]) -> str:
  """Auto against NadamW and the default average, run by run."""
  study = Study.of(rows)
  lines = []
  for workload in [*study.workloads, None]:
    late = study.differences(AUTO, NADAMW, workload)
    ahead = study.differences(AUTO, DEFAULT, workload)
    arrived = [study.arrivals(n, workload) for n in (AUTO, DEFAULT, NADAMW)]
    lines.append(
      [
        workload or '**all**',
        str(arrived[0][1]),
        ' / '.join(str(count) for count, _ in arrived),
        *_spread(late),
        *_spread(ahead),
      ]
    )
  header = ['workload', 'runs', f'auto / {label_of(DEFAULT)} / NadamW arrive']
  for other in (NADAMW, DEFAULT):
    header += [f'auto - {label_of(other)}: median / largest', 'runs']
  return markdown(header, lines)


def rules(rows: Sequence[Row]) -> str:
  """What else has chosen at every setting, beside auto, over all runs."""
  study = Study.of(rows)
  lines = []
  for name in study.choosers:
    late = study.differences(name, NADAMW)
    ahead = study.differences(name, DEFAULT)
    arrived, runs = study.arrivals(name)
    cells = [label_of(name), f'{arrived} of {runs}']
    lines.append([*cells, *_spread(late), *_spread(ahead)])
  header = ['rule', 'arrives']
  for other in (NADAMW, DEFAULT):
    header += [f'against {label_of(other)}: median / largest', 'runs']
  return markdown(header, lines)


def _spread(differences: Sequence[float]) -> tuple[str, str]:
  median = middle(differences) if differences else None
  largest = _signed(_largest(differences))
  return f'{_signed(median)} / {largest}', _counts(differences)


def ablation(rows: Sequence[Row]) -> str:
  """Other probes at the tuned setting; in brackets, how often raw is chosen."""
  study = Study.of(rows)
  names = dict.fromkeys(
    row['candidate'] for row in rows if row['share_of_raw'] is not None
  )
  lines = []
  for setting in _tuned(study):
    cells = [setting[0], str(len(study.times[setting][AUTO]))]
    for name in names:
      shares = [
        row['share_of_raw']
        for row in rows
        if (row['candidate'], row['workload']) == (name, setting[0])
        and (row['learning_rate_factor'], row['schedule']) == TUNED
      ]
      share = (
        f' (raw {100 * sum(shares) / len(shares):.0f} %)' if shares else ''
      )
      cells.append(time_cell(study, setting, name) + share)
    cells += [time_cell(study, setting, NADAMW)]
    lines.append(cells)
  header = ['workload', 'seeds', *names, label_of(NADAMW)]
  return markdown(header, lines)


def settings(rows: Sequence[Row]) -> str:
  """Everything that was measured: medians over seeds at every setting."""
  study = Study.of(rows)
  names = [*study.fixed, AUTO]
  lines = [
    [*map(str, s), *(time_cell(study, s, name) for name in names)]
    for s in sorted(study.times)
  ]
  header = ['workload', 'rate x', 'schedule', *map(label_of, names)]
  return markdown(header, lines)


# What there is for the README: captions, and what makes a table.
TITLES = {
  verdicts: 'Numbers to reach',
  steps: 'Tuned learning rate, cosine to zero: fraction of T to the target, '
  'median over seeds',
  gaps: 'Behind the best fixed candidate in hindsight, over learning rates and '
  f'schedules: median / largest / within {NEAR_BEST:g} of T at so many',
  comparison: 'Run by run; where neither arrives, nothing is compared',
  rules: 'Other rules and probes, all runs',
  ablation: 'Other rules and probes, tuned learning rate, cosine to zero',
  settings: 'Every setting',
}


def table(rows: Sequence[Row]) -> str:
  """All tables."""
  parts = [f'{title}:\n\n{make(rows)}' for make, title in TITLES.items()]
  return '\n\n'.join([extent(rows), *parts])
