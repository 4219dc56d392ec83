"""Tables of the documentation, from `results/` and from the configuration.

cog runs the functions of this module where a page calls them: `make tables`
writes the pages, `make check` fails when a page is stale.
"""

import json
import pathlib
import re
from typing import Any

from benchmarks import tables as bench
from lab.studies import (
  algoperf_table,
  auto_tables,
  horizon,
  repeated_study,
  study,
)
from weightavg.averaging_config import point_fields
from weightavg.config_fields import REQUIRED, allowed_text, fields_by_key
from weightavg.optimizers.nadamw import NadamWConfig
from weightavg.optimizers.shampoo import ShampooConfig
from weightavg.submission_config import RegularizationConfig, ScheduleConfig

RESULTS = pathlib.Path(__file__).resolve().parents[1] / 'results'


def show(text: str) -> None:
  """Write a table into the page that cog is filling."""
  import cog

  # Blank lines separate the table from the comments around it.
  cog.out(f'\n{text}\n\n')


def results(name: str) -> Any:
  """Rows of a committed results file."""
  return json.loads((RESULTS / name).read_text())


def hyperparameters() -> str:
  """Every key of a tuning point, with default, range and meaning."""
  parts: dict[str, Any] = {
    'averaging': point_fields(),
    'budget and learning rate': fields_by_key(ScheduleConfig),
    'training step': fields_by_key(RegularizationConfig),
    'NadamW': fields_by_key(NadamWConfig),
    'Shampoo': fields_by_key(ShampooConfig),
  }
  lines = ['| key | default | allowed | meaning |', '|---|---|---|---|']
  for title, part in parts.items():
    lines.append(f'| **{title}** | | | |')
    for key, field in part.items():
      default = 'required'
      if field.default is not REQUIRED:
        default = _plain(field.default, field.metadata['stands_for'])
      allowed = re.sub('^in ', '', allowed_text(field))
      lines.append(
        f'| `{key}` | {default} | {allowed} | {field.metadata["help"]} |'
      )
  return '\n'.join(lines)


def _plain(value: Any, stands_for: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  return text if stands_for is None else f'{text} ({stands_for})'


# Rows of the table on the front page: optimizer and average.
FRONT_PAGE = {
  'NadamW': ('nadamw', 'raw'),
  'NadamW, EMA 1 %': ('nadamw', 'ema 1 %'),
  'NadamW, LAWA 10 %': ('nadamw', 'lawa 10 %'),
  'Shampoo': ('shampoo', 'raw'),
  'Shampoo, EMA 1 %': ('shampoo', 'ema 1 %'),
  'Shampoo, LAWA 10 %': ('shampoo', 'lawa 10 %'),
}


def front_page() -> str:
  """Steps to target of six methods, as a multiple of NadamW's."""
  rows = results('study/study.json')
  workloads = sorted({row['workload'] for row in rows})
  lines = [
    f'| | {" | ".join(f"`{name}`" for name in workloads)} | all runs |',
    '|---' * (len(workloads) + 2) + '|',
  ]
  for title, (optimizer, candidate) in FRONT_PAGE.items():
    own = [
      row
      for row in rows
      if (row['optimizer'], row['candidate']) == (optimizer, candidate)
    ]
    cells = [title]
    for name in [*workloads, None]:
      ratio = study.median_ratio(
        row for row in own if name in (None, row['workload'])
      )
      cells.append('–' if ratio is None else f'{ratio:.2f}')
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def steps_to_target() -> str:
  """Steps to target on the local workloads, as a multiple of NadamW's."""
  return study.table(results('study/study.json'))


def horizons() -> str:
  """Steps to target at the default horizon and at the best one."""
  return horizon.table(results('horizon/horizon.json'))


def running_statistics() -> str:
  """Steps to target with averaged and with current running statistics."""
  return horizon.statistics_table(results('horizon/horizon.json'))


def choice(*names: str) -> str:
  """Tables of the study of the choice among averages, by function name."""
  rows = results('auto/auto.json')
  return '\n\n'.join(getattr(auto_tables, name)(rows) for name in names)


def repeated_data() -> str:
  """The choice among averages when training data repeat."""
  return repeated_study.table(results('auto/repeated.json'))


def algoperf() -> str:
  """Outcome of each submission on each workload of the benchmark."""
  return algoperf_table.table(results('algoperf/matrix.json'))


def performance() -> str:
  """The benchmark rows that answer a user's questions."""
  return bench.selected(results('bench/bench.json'))


def all_benchmarks() -> str:
  """Every benchmark row."""
  return bench.complete(results('bench/bench.json'))


def time_breakdown() -> str:
  """Seconds of a profiled run by action."""
  return bench.time_breakdown(results('bench/time_breakdown.json'))
