"""Tables of the studies and searches, from their rows in `results/`.

As in `doc_tables`, cog runs the functions where a page calls them.
"""

import json
from collections.abc import Callable
from typing import Any

from doc_tables import RESULTS, results

from lab.studies import (
  auto,
  bema,
  frameworks,
  gains,
  horizon,
  primal,
  published,
  refreshing,
  repeated,
  robustness,
  running_statistics,
  sequences,
  steps,
)
from lab.studies.claims import report as claim_report
from lab.studies.claims import rows as claim_rows
from lab.studies.parts import finals, frame, primal_tables, search, tables
from lab.studies.parts.goals import table as goals_table
from lab.studies.parts.methods import METHODS
from lab.studies.parts.tables import number

FRONT_PAGE = {
  'NadamW': ('nadamw', 'raw'),
  'NadamW, EMA 1 %': ('nadamw', 'ema 1 %'),
  'NadamW, EMA 3 %': ('nadamw', 'ema 3 %'),
  'NadamW, LAWA 10 %': ('nadamw', 'lawa 10 %'),
  'NadamW, polynomial 9': ('nadamw', 'polynomial 9'),
  'Shampoo': ('shampoo', 'raw'),
  'Shampoo, EMA 3 %': ('shampoo', 'ema 3 %'),
  'Shampoo, LAWA 10 %': ('shampoo', 'lawa 10 %'),
}

FRONT_PAGE_TRAINED = (
  'nadamw_primal',
  'nadamw_schedule_free',
  'shampoo_primal',
  'shampoo_schedule_free',
)

FRONT_PAGE_CLAIMS = 'acdefgi'


def front_page() -> str:
  """Steps to target of several methods, as a multiple of NadamW's."""
  data = frame.read(results('study/study.json'))
  data = data[data['tuned_for'] == 'raw']
  workloads = sorted(set(data['workload']))
  lines = [
    f'| | {" | ".join(f"`{name}`" for name in workloads)} | all runs |',
    '|---' * (len(workloads) + 2) + '|',
  ]
  for title, method in FRONT_PAGE.items():
    own = data[(data[['optimizer', 'candidate']] == method).all(axis=1)]
    groups = [own[own['workload'] == name] for name in workloads]
    ratios = [frame.median(g['ratio_to_nadamw']) for g in [*groups, own]]
    lines.append(f'| {" | ".join([title, *map(number, ratios)])} |')
  path = RESULTS / 'primal' / 'primal.json'
  if path.exists():
    trained = frame.read(json.loads(path.read_text()))
    medians = primal_tables.medians(trained, 'ratio_to_nadamw')
    medians = medians.reindex(columns=[*workloads, primal_tables.ALL])
    lines += [
      f'| {primal_tables.TITLES[method]} | '
      f'{" | ".join(map(number, medians.loc[method]))} |'
      for method in FRONT_PAGE_TRAINED
      if method in medians.index
    ]
  return '\n'.join(lines)


def steps_to_target() -> str:
  """Steps to target on the local workloads, as a multiple of NadamW's."""
  return steps.table(results('study/study.json'))


def equal_budget() -> str:
  """Steps to target of methods that were tuned on the same trials."""
  return steps.equal_budget(results('study/study.json'))


def goals() -> str:
  """Numbers that the averages were to reach."""
  return goals_table(results('study/study.json'), results('auto/tuned.json'))


def final_metric() -> str:
  """Best metric within the budget, against NadamW's."""
  return steps.final_metric(results('study/study.json'))


def levels() -> str:
  """Steps to the levels that the raw weights reach at 0.5 to 0.9 T."""
  return steps.levels_table(results('study/levels.json'))


def published_points() -> str:
  """Best of the five published points on each workload."""
  return published.table(results('published/published.json'))


def _range(span: dict[str, Any]) -> str:
  """Values of a range, in words."""
  if 'feasible_points' in span:
    return ', '.join(map(str, span['feasible_points']))
  return f'{span["min"]:g} to {span["max"]:g}, {span["scaling"]} scale'


def search_ranges() -> str:
  """Ranges that all searches share."""
  lines = [[f'`{name}`', _range(span)] for name, span in search.RANGES.items()]
  return tables.markdown(['hyperparameter', 'values'], lines)


def own_ranges() -> str:
  """Ranges in which a search differs from the shared ones, by method."""
  lines = []
  for name, method in METHODS.items():
    spans = method.ranges(search.RANGES)
    instead = {own: shared for shared, (own, _) in method.replaced.items()}
    lines += [
      [
        f'`{name}`',
        f'`{key}`',
        _range(span),
        f'`{instead[key]}`' if key in instead else '',
      ]
      for key, span in spans.items()
      if key not in search.RANGES
    ]
  header = ['method', 'hyperparameter', 'values', 'in the place of']
  return tables.markdown(header, lines)


def in_both_frameworks() -> str:
  """Steps to target of the same submission in PyTorch and in JAX."""
  return frameworks.table(results('frameworks/frameworks.json'))


def _searches() -> list[dict[str, Any]]:
  folders = sorted((RESULTS / 'tuning').glob('*/search.json'))
  return [json.loads(path.read_text()) for path in folders]


def searches() -> str:
  """Extent of each search."""
  lines = [
    [
      record['workload'],
      record['method'],
      str(record['trials']),
      str(record['stopped_trials']),
      number(record['fraction_of_steps']),
    ]
    for record in _searches()
    if 'winners' in record
  ]
  header = ['workload', 'method', 'trials', 'stopped early', 'of all steps']
  return tables.markdown(header, lines)


def tuned_points() -> str:
  """Winning point and average of each kind, by workload and method."""
  return '\n\n'.join(
    f'`{record["workload"]}`, `{record["method"]}` ({record["metric"]}):\n\n'
    + finals.table(record)
    for record in _searches()
    if 'winners' in record
  )


def search_results() -> str:
  """Mean metric of each search's winner, by method and workload."""
  found = [record for record in _searches() if 'winners' in record]
  columns = {f'{r["workload"]} ({r["metric"]})': r for r in found}
  best = {
    column: (max if r['higher_is_better'] else min)(
      _mean(other) for other in found if other['workload'] == r['workload']
    )
    for column, r in columns.items()
  }
  means = {(r['workload'], r['method']): _mean(r) for r in found}
  lines = []
  for method in METHODS:
    cells = [primal_tables.TITLES[method]]
    for column, r in columns.items():
      mean = means.get((r['workload'], method))
      cell = number(mean, '.4f')
      cells.append(f'**{cell}**' if mean == best[column] else cell)
    lines.append(cells)
  return tables.markdown(['method', *columns], lines)


def _mean(record: dict[str, Any]) -> float:
  """Mean of the weights that the method shows; of raw ones otherwise."""
  winners = record['winners']
  return float((winners.get('shown') or winners['raw'])['mean'])


def trial_gains() -> str:
  """Correlations of gains with momentum and learning rate over trials."""
  return gains.table(results('gains/trials.json'))


def long_runs() -> str:
  """Ratios in runs of one and of four times the step hint."""
  return gains.long_table(results('gains/long.json'))


def horizons() -> str:
  """Steps to target at the default horizon and at the best one."""
  return horizon.table(results('horizon/horizon.json'))


def averaged_statistics() -> str:
  """Steps to target with averaged and with current running statistics."""
  return horizon.statistics_table(results('horizon/horizon.json'))


def choice(*names: str, file: str = 'auto') -> str:
  """Tables of the study of the choice among averages, by function name."""
  rows = results(f'auto/{file}.json')
  return '\n\n'.join(getattr(auto, name)(rows) for name in names)


def repeated_data() -> str:
  """The choice among averages when training data repeat."""
  return repeated.table(results('auto/repeated.json'))


def corrected_averages() -> str:
  """Metric of averages that are corrected for their lag."""
  return bema.table(results('horizon/bema.json'))


def _primal(
  file: str, table: Callable[[list[Any]], str], study: str = 'primal'
) -> str:
  """A table of averages that train, once the study has been run."""
  path = RESULTS / 'primal' / file
  if not path.exists():
    return f'Not measured yet: `python -m lab.studies {study}`.'
  return table(json.loads(path.read_text()))


def primal_steps() -> str:
  """Steps to target of averages that train and of those that watch."""
  return _primal('primal.json', primal.table)


def running_statistics_at_x() -> str:
  """Metric of x with each kind of running statistics."""
  return _primal(
    'running_statistics.json', running_statistics.table, 'running_statistics'
  )


def sequences_of_runs() -> str:
  """Steps to target of y, z and longer averages, over those of x."""
  return _primal('sequences.json', sequences.table, 'sequences')


def primal_verdicts() -> str:
  """Numbers that averages that train were to reach."""
  return _primal('primal.json', primal.verdicts)


def primal_final() -> str:
  """Best metric within T of averages that train and of those that watch."""
  return _primal('primal.json', primal.final_metric)


def primal_levels() -> str:
  """Steps to the levels of NadamW's raw weights."""
  return _primal('levels.json', primal.levels_table)


def robust_steps() -> str:
  """Steps to target of each method at other learning rates."""
  return _primal('robustness.json', robustness.steps_table, 'robustness')


def robust_rates() -> str:
  """Best metric that other learning rates lose."""
  return _primal('robustness.json', robustness.rates_table, 'robustness')


def robust_budgets() -> str:
  """Best metric that other budgets lose, with a wrong and with the right T."""
  return _primal('robustness.json', robustness.budgets_table, 'robustness')


def refreshing_share() -> str:
  """The time of refreshing running statistics."""
  return _primal('refreshing.json', refreshing.sentence, 'refreshing')


def primal_figure(name: str, text: str) -> str:
  """A figure of averages that train, once a study has drawn it."""
  if not (RESULTS / 'primal' / name).exists():
    return ''
  return f'![{text}](../results/primal/{name})'


def _claims() -> list[dict[str, Any]]:
  """Rows of the claims; not measured, where no study has been run."""
  path = RESULTS / 'study' / 'claims.json'
  rows = json.loads(path.read_text()) if path.exists() else []
  return claim_rows.merged(rows, claim_rows.unmeasured())


def claim_table() -> str:
  """Every claim with its source, our measurement and the verdict."""
  return claim_report.table(_claims())


def claim_sections() -> str:
  """A heading and a section for each claim."""
  return '\n\n'.join(
    f'### {row["claim"]}\n\n{claim_report.section(row)}' for row in _claims()
  )


def claims_front_page() -> str:
  """The claims of the first table that are measured, with verdicts."""
  rows = [
    row
    for row in _claims()
    if row['claim'] in FRONT_PAGE_CLAIMS and row['reason'] is None
  ]
  return claim_report.short_table(rows)


def claim_figure(name: str, text: str) -> str:
  """A figure of the claims, once a study has drawn it."""
  if not (RESULTS / 'study' / name).exists():
    return ''
  return f'![{text}](../results/study/{name})'
