"""Tables of the documentation, from `results/` and from the configuration.

cog runs the functions of this module where a page calls them: `make tables`
writes the pages, `make check` fails when a page is stale.
"""

import json
import pathlib
import re
from typing import Any

import algoperf_table

from benchmarks import tables as bench
from benchmarks.gpu import table as gpu_table
from weightavg.averaging_config import point_fields
from weightavg.config_fields import REQUIRED, allowed_text, fields_by_key
from weightavg.optimizers.nadamw import NadamWConfig
from weightavg.optimizers.shampoo import ShampooConfig
from weightavg.submission_config import RegularizationConfig, ScheduleConfig

RESULTS = pathlib.Path(__file__).resolve().parents[1] / 'results'

FAULTS = {
  'kills': 'processes killed by SIGKILL, then resumed',
  'signals': 'runs stopped by SIGTERM or SIGUSR1, then resumed',
  'corruptions': 'damaged checkpoints, measurements and full disks',
  'inputs_fuzzed': 'files fed to readers',
  'not finite': 'runs with a NaN or an infinity',
  'sequences': 'sequences of calls against a float64 model',
  'long steps': 'steps of long runs',
}


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


def algoperf() -> str:
  """Outcome of each submission on each workload of the benchmark."""
  return algoperf_table.table(results('algoperf/matrix.json'))


def clock_replay() -> str:
  """Ends of the schedules of public logs, planned by steps and by the clock."""
  header = [
    'workload', 'framework', 's per step', 'limit, s', '1.5 x step hint: s',
    'in time', 'clock: T', 's', 'in time', 'T / step hint',
  ]  # fmt: skip
  lines = [
    '| ' + ' | '.join(header) + ' |',
    '|---' * len(header) + '|',
  ]
  for row in results('algoperf/clock_replay.json')['rows']:
    workload, framework, _, duration, limit, _, _, before, *rest = row
    in_time, step, after, after_in_time, share = rest
    cells = [
      workload, framework, duration, limit, before, in_time, step, after,
      after_in_time, share,
    ]  # fmt: skip
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def clock_utilizations() -> str:
  """Schedules that end in time, by the share of the limit they aim at."""
  header = ['b', 'runs', 'schedule ends in time', 'and an evaluation follows']
  rows = [header, ['---'] * len(header)]
  rows += results('algoperf/clock_replay.json')['utilizations']
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def performance() -> str:
  """The benchmark rows that answer a user's questions."""
  return bench.selected(results('bench/bench.json'))


def all_benchmarks() -> str:
  """Every benchmark row."""
  return bench.complete(results('bench/bench.json'))


def time_breakdown() -> str:
  """Seconds of a profiled run by action."""
  return bench.time_breakdown(results('bench/time_breakdown.json'))


def a100_scores() -> str:
  """Scores and savings of public AlgoPerf 1.0 submissions."""
  report = results('algoperf_a100/report.json')
  savings = {row['submission']: row for row in report['savings']}
  lines = [
    '| submission | score | 95 % interval | targets reached | fewest studies | '
    'GPU-hours | saving |',
    '|---' * 7 + '|',
  ]
  for row in report['score_intervals']:
    name = row['submission']
    saved = savings[name]
    lines.append(
      f'| `{name}` | {row["score"]:.3f} | '
      f'{row["score_low"]:.3f} to {row["score_high"]:.3f} | '
      f'{row["reached"]} of {row["workloads"]} | {row["fewest_studies"]} | '
      f'{saved["gpu_hours"]:.0f} | {100 * saved["saving"]:.1f} % |'
    )
  return '\n'.join(lines)


def a100_values() -> str:
  """Gain in score by fewer steps and by one more workload."""
  lines = [
    '| submission | score | 10 % fewer steps | one more workload | which |',
    '|---' * 5 + '|',
  ]
  lines += [
    f'| `{row["submission"]}` | {row["score"]:.3f} | '
    f'{row["gain_by_fewer_steps"]:+.3f} | '
    f'{row["gain_by_one_more_workload"]:+.3f} | `{row["workload"]}` |'
    for row in results('algoperf_a100/report.json')['value_of_changes']
  ]
  return '\n'.join(lines)


def faults() -> str:
  """Faults that the long form of the tests has tried, and what was lost."""
  found = results('faults/faults.json')
  lines = ['| tried | number | of which |', '|---|---|---|']
  for key, text in FAULTS.items():
    if key in found['by_category']:
      parts = ', '.join(
        f'{name} {count:,}' for name, count in found['by_category'][key].items()
      )
      lines.append(f'| {text} | {found[key]:,} | {parts} |')
  mutants, killed = found['mutants'], found['mutants_killed']
  lines += [
    f'| mutants of the core | {mutants:,} | {killed:,} killed by tests, '
    f'{mutants - killed:,} justified |',
    f'| **losses** | **{found["lost"]}** | |',
    '',
    f'Commit {found["commit"]}.',
  ]
  return '\n'.join(lines)


def gpu() -> str:
  """Every section of `make gpu`."""
  return gpu_table.page(results('gpu/gpu.json')).rstrip()
