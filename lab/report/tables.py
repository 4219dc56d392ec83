"""The tables of a report, and report.md."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from lab.report import intervals
from lab.report.formatting import (
  MISSING,
  Column,
  Table,
  escape_markdown,
  percent,
  signed,
  significant,
  three,
  whole,
)
from lab.report.report import Report

_MISSED_TEXT = {
  'budget': 'costs the whole time budget',
  'spent': 'costs the billed time of the runs that missed it',
  'reached': 'leaves the workload out; only those reached by both are compared',
}
_INTERVAL = (
  f'Low and high: {intervals.LEVEL:.0%} bootstrap interval over studies.'
)
_STUDIES = Column('fewest_studies', 'fewest studies', lambda v: f'{v:.0f}')
_SUBMISSION = Column('submission', 'submission', is_number=False)
_WORKLOAD = Column('workload', 'workload', is_number=False)


def all_tables(report: Report) -> list[Table]:
  """Tables that the logs give rise to, the most important first."""
  tables = [
    _scores(report),
    _matrix(
      report,
      'seconds',
      'Seconds to target',
      f'Median over studies of the fastest trial. {MISSING}: missed by half of '
      'the studies or more, or no logs.',
      whole,
    ),
    _matrix(
      report,
      'fraction_of_budget',
      'Steps to target, as a fraction of the budget',
      "Median over studies of the steps, divided by the workload's step hint.",
      three,
    ),
    _medians(report),
    _best(report),
    _hours(report),
  ]
  if report.options.baseline is not None:
    tables += [_savings(report), _relative(report)]
  tables.append(_values(report))
  if report.what_if:
    tables.append(_what_if(report))
  tables += [_fits(report, name) for name, rows in report.fits.items() if rows]
  return tables


def _scores(report: Report) -> Table:
  columns = [
    _SUBMISSION,
    Column('score', 'score', three),
    Column('score_low', 'low', three),
    Column('score_high', 'high', three),
    Column('reached', 'targets reached', whole),
    Column('counted', 'that count', whole),
    Column('workloads', 'workloads', whole),
    Column('fewest_studies', 'fewest studies', whole),
  ]
  note = (
    'Integral of the performance profile over tau in [1, 4], divided by 3. '
    f'Times beyond 4 x the fastest count as missed. {_INTERVAL}'
  )
  if report.targets.held_out:
    note += ' A missed held-out workload makes its base workload missed.'
  if report.options.baseline is not None:
    columns.append(Column('relative_time', 'relative time', three))
    note += (
      f' Relative time: geometric mean of the time over that of '
      f'{report.options.baseline}, a missed target at the '
      'time budget and one second.'
    )
  return Table('scores', 'Scores', note, columns, _rows(report.scores))


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
  return [{str(k): v for k, v in r.items()} for r in table.to_dict('records')]


def _pivot(
  report: Report, table: pd.DataFrame, column: str
) -> list[dict[str, Any]]:
  """Rows of submissions, keys of workloads, in the report's order."""
  matrix = table.pivot(index='submission', columns='workload', values=column)
  names = [n for n in report.submissions if n in matrix.index]
  matrix = matrix.reindex(index=names, columns=report.workloads)
  rows = [
    {'submission': name} | {str(k): v for k, v in row.items()}
    for name, row in matrix.iterrows()
  ]
  return _with_studies(report, rows)


def _with_studies(
  report: Report, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """Rows of submissions with the number of studies behind them."""
  fewest = report.scores.set_index('submission')['fewest_studies']
  return [{**row, 'fewest_studies': fewest[row['submission']]} for row in rows]


def _by_workload(report: Report, text: Callable[[Any], str]) -> list[Column]:
  columns = [Column(name, name, text) for name in report.workloads]
  return [_SUBMISSION, *columns, _STUDIES]


def _matrix(
  report: Report,
  column: str,
  title: str,
  note: str,
  text: Callable[[Any], str],
) -> Table:
  rows = _pivot(report, report.medians, column)
  return Table(column, title, note, _by_workload(report, text), rows)


def _medians(report: Report) -> Table:
  columns = [
    _SUBMISSION,
    _WORKLOAD,
    Column('seconds', 'seconds', whole),
    Column('seconds_low', 'low', whole),
    Column('seconds_high', 'high', whole),
    Column('steps', 'steps', whole),
    Column('fraction_of_budget', 'of budget', three),
    Column('reached', 'studies at target', whole),
    Column('studies', 'studies', whole),
  ]
  note = (
    'Median over studies. Low and high: '
    f'{intervals.LEVEL:.0%} bootstrap interval of the seconds.'
  )
  return Table(
    'time_to_target', 'Time to target', note, columns, _rows(report.medians)
  )


def _best(report: Report) -> Table:
  columns = [
    _SUBMISSION,
    _WORKLOAD,
    Column('metric', 'metric', is_number=False),
    Column('target', 'target', significant),
    Column('best', 'best', significant),
    Column('best_min', 'lowest', significant),
    Column('best_max', 'highest', significant),
    Column('step_seconds', 'seconds per step', significant),
    Column('evaluation_share', 'evaluation', percent),
    Column('averaging_share', 'averaging', percent),
    Column('studies', 'studies', whole),
    Column('trials', 'trials', whole),
  ]
  note = (
    'Best validation metric of a study: median and range over studies. '
    'Evaluation: share of billed, evaluation and logging time. Averaging: '
    'share of billed time, where the runner recorded a profile.'
  )
  return Table(
    'best_metric', 'Best validation metric', note, columns, _rows(report.best)
  )


def _hours(report: Report) -> Table:
  columns = [
    _SUBMISSION,
    _WORKLOAD,
    Column('gpus', 'GPUs', whole),
    Column('to_target', 'to target', three),
    Column('for_budget', 'for the budget', three),
    Column('spent', 'spent', three),
    Column('studies', 'studies', whole),
  ]
  note = (
    'GPU-hours of one trial. For the budget: billed time that the '
    f'{report.options.ruleset} ruleset allows. Spent: billed time of the runs, '
    'median over studies.'
  )
  return Table('gpu_hours', 'GPU-hours', note, columns, _rows(report.gpu_hours))


def _savings(report: Report) -> Table:
  baseline = report.options.baseline
  columns = [
    _SUBMISSION,
    Column('workloads', 'workloads compared', whole),
    Column('reached', 'targets reached', whole),
    Column('fewest_studies', 'fewest studies', whole),
    Column('gpu_hours', 'GPU-hours', significant),
    Column('baseline_gpu_hours', 'of the baseline', significant),
    Column('saving', 'saving', percent),
    Column('saving_low', 'low', percent),
    Column('saving_high', 'high', percent),
    Column('median_ratio', 'median ratio', three),
  ]
  note = (
    f'GPU-hours over the base workloads beside those of {baseline}. A missed '
    f'target {_MISSED_TEXT[report.options.missed]} '
    f'(rule {report.options.missed}). {_INTERVAL}'
  )
  return Table(
    'savings', 'Saving of GPU-hours', note, columns, _rows(report.savings)
  )


def _relative(report: Report) -> Table:
  baseline = report.options.baseline
  columns = [
    _SUBMISSION,
    _WORKLOAD,
    Column('steps_ratio', 'steps', three),
    Column('steps_ratio_low', 'low', three),
    Column('steps_ratio_high', 'high', three),
    Column('seconds_ratio', 'seconds', three),
    Column('seconds_ratio_low', 'low', three),
    Column('seconds_ratio_high', 'high', three),
    Column('studies', 'fewest studies', whole),
  ]
  note = (
    f'Medians relative to those of {baseline}, where both reach the target. '
    f'{_INTERVAL} A low of 0: in some resamples only the baseline misses; a '
    f'high of {MISSING}: only the submission.'
  )
  rows = _rows(report.relative)
  return Table('relative', 'Relative to the baseline', note, columns, rows)


def _values(report: Report) -> Table:
  columns = [
    _SUBMISSION,
    Column('score', 'score', three),
    Column('gain_by_fewer_steps', '10 % fewer steps', signed),
    Column('gain_by_one_more_workload', 'one more workload', signed),
    Column('workload', 'which', is_number=False),
    Column('reached_at_seconds', 'at seconds', whole),
    _STUDIES,
  ]
  note = (
    'Gain in score by 10 % fewer steps at the same time per step, and by one '
    'more target: the missed one with the largest gain among those that '
    'another submission reaches, at the slowest time of these; where there is '
    "none, among all, at the budget. The other submissions' times stay."
  )
  return Table(
    'value_of_changes', 'Value of fewer steps and of one more workload', note,
    columns, _with_studies(report, report.values),
  )  # fmt: skip


def _what_if(report: Report) -> Table:
  columns = [
    Column('what_if', 'what if', is_number=False),
    _SUBMISSION,
    Column('score_before', 'score', three),
    Column('score_after', 'score then', three),
    Column('gain', 'gain', signed),
  ]
  note = 'Score within the group if the change held.'
  return Table('what_if', 'What if', note, columns, report.what_if)


def _fits(report: Report, name: str) -> Table:
  columns = [
    _SUBMISSION,
    _WORKLOAD,
    Column('best_value', f'best {name}', significant),
    Column('best_fraction_of_budget', 'steps to target, of budget', three),
    Column('lowest', 'lowest tried', significant),
    Column('highest', 'highest tried', significant),
    Column('trials', 'trials at target', whole),
  ]
  note = (
    f'Parabola in log {name} through the trials that reach the target; its '
    'lowest point within the range tried.'
  )
  return Table(f'fit_{name}', f'Best {name}', note, columns, report.fits[name])


def markdown(
  report: Report, tables: Sequence[Table], figures: Sequence[str]
) -> str:
  """The content of report.md.

  Args:
    report: The report.
    tables: Its tables.
    figures: Paths of the figures, relative to report.md.
  """
  targets = report.targets
  parts = [
    '# AlgoPerf report\n',
    f'{len(report.submissions)} submissions, '
    f'{len(report.workloads)} workloads, {len(report.trials)} trials. '
    f'Targets: {escape_markdown(targets.title)}; '
    f'ruleset: {report.options.ruleset}; a score is a fraction of '
    f'{len(targets.base_workloads)} base workloads.\n',
  ]
  parts += [table.markdown() for table in tables]
  if figures:
    parts.append('## Figures\n')
    parts += [f'![{name}]({name})\n' for name in figures]
  for title, lines in (('Notes', report.notes), ('Problems', report.problems)):
    if lines:
      items = '\n'.join(f'- {escape_markdown(line)}' for line in lines)
      parts.append(f'## {title}\n\n{items}\n')
  return '\n'.join(parts)
