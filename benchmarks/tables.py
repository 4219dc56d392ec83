"""Tables of benchmark results for the documentation: pure functions of rows.

`ROWS` names the rows that answer a user's question; the whole table stands
behind them. `LIMITS` holds the largest ratio that each benchmark aims for.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lab.run import profile_report

LIMITS = {
  'ema_update/flat_lerp': 1.1,
  'lawa_sample/flat_copy': 1.1,
  'lawa_mean_10/bytes_limit': 1.3,
  'swap/flat_copy': 0.05,
  'nadamw_step/adamw_fused': 2.0,
  'nadamw_compiled_step/adamw_fused': 1.3,
  'primal_step/adamw_fused': 2.2,
  'primal_compiled_step/adamw_fused': 1.15,
  'shampoo_step/adamw_fused': 28,
  'shampoo_precondition_step_spread/plain_step': 2,
  'shampoo_state_bytes/params_bytes': 6,
  'offline_peak_bytes/model_bytes': 2.5,
  'offline_peak_bytes_pt/model_bytes': 2.5,
}
# Limits of all benchmarks whose name begins with this and a slash.
LIMITS_BY_GROUP = {
  'train_step': 1.003,
  'train_step_every_step': 1.02,
  'probe': 0.005,
}

# The question that each row answers, in the order in which they are shown.
ROWS = {
  'train_step/stdlib_lm/nadamw_ema': 'training step with EMA',
  'train_step/stdlib_lm/nadamw_auto': 'training step with four averages (auto)',
  'train_step_every_step/stdlib_lm/nadamw_ema': (
    'training step with EMA, one sample per step'
  ),
  'probe/stdlib_lm': "auto's choice, as a fraction of the run",
  'ema_update/flat_lerp': 'EMA update, values checked for NaN',
  'ema_update_unchecked/flat_lerp': 'EMA update, unchecked',
  'ema_update/swa_utils': 'EMA update against torch.optim.swa_utils',
  'ema_update/ema_pytorch': 'EMA update against ema-pytorch',
  'lawa_sample/flat_copy': 'LAWA sample',
  'lawa_mean_10/bytes_limit': 'LAWA mean of ten samples',
  'swap/flat_copy': 'swap in and out',
  'nadamw_step/adamw_fused': 'NadamW step',
  'nadamw_compiled_step/adamw_fused': 'NadamW step, compiled',
  'primal_step/adamw_fused': 'NadamW step at an average',
  'primal_compiled_step/adamw_fused': 'NadamW step at an average, compiled',
  'shampoo_step/adamw_fused': 'Shampoo step, amortised',
  'offline_peak_bytes/model_bytes': 'memory of an offline average',
}

Results = Mapping[str, Mapping[str, Any]]


def limit_of(name: str) -> float | None:
  """The ratio that a benchmark aims for; None without a goal."""
  return LIMITS.get(name, LIMITS_BY_GROUP.get(name.split('/')[0]))


def _ratio(value: float | None) -> str:
  return '–' if value is None else f'{value:.3g}'


def _goal(name: str, ratio: float | None) -> str:
  limit = limit_of(name)
  if limit is None:
    return ''
  missed = ratio is None or ratio > limit
  return f'{limit:g}' + (' **missed**' if missed else '')


def _lines(header: str, rows: Iterable[Iterable[str]]) -> str:
  columns = header.count('|') - 1
  return '\n'.join(
    [header, '|' + '---|' * columns, *(f'| {" | ".join(r)} |' for r in rows)]
  )


def selected(results: Results) -> str:
  """Markdown table of the rows in `ROWS` that were measured."""
  return _lines(
    '| operation | ratio | goal: at most | compared with | benchmark |',
    (
      (
        question,
        _ratio(results[name]['ratio']),
        _goal(name, results[name]['ratio']),
        results[name]['against'],
        f'`{name}`',
      )
      for name, question in ROWS.items()
      if name in results
    ),
  )


def complete(results: Results) -> str:
  """Markdown table of every benchmark, sorted by name."""

  def milliseconds(value: float | None) -> str:
    return '' if value is None else f'{value:.3g}'

  return _lines(
    '| benchmark | ratio | goal: at most | measured, ms | reference, ms '
    '| reference |',
    (
      (
        f'`{name}`',
        '–' if row['ratio'] is None else f'{row["ratio"]:.3f}',
        _goal(name, row['ratio']),
        milliseconds(row['ours_ms']),
        milliseconds(row['other_ms']),
        row['against'],
      )
      for name, row in sorted(results.items())
    ),
  )


def time_breakdown(profiles: Mapping[str, Any]) -> str:
  """The profile of each run as a text table under its title."""
  return '\n\n'.join(
    f'NadamW with EMA on `stdlib_lm`, {title}:\n\n'
    f'```text\n{profile_report.table(profile)}\n```'
    for title, profile in profiles.items()
  )
