"""Figures of the choice among averages."""

import itertools
import math
import pathlib
from collections.abc import Sequence

import pandas as pd

from lab.studies.parts import plots
from lab.studies.parts.choice_log import Choice
from lab.studies.parts.choice_tables import (
  AUTO,
  DEFAULT,
  NADAMW,
  Times,
  label_of,
)
from lab.studies.parts.frame import Row

_SCHEDULES = ('cosine', 'cosine_to_half', 'constant')


def draw_steps(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Draw a panel for each workload: fraction of T to the target by setting.

  Args:
    rows: of auto.json.
    path: of the figure.
  """
  times = Times(rows)
  table = times.medians[[NADAMW, DEFAULT, AUTO]].rename(columns=label_of)
  table['best fixed'] = times.best_fixed
  names = times.workloads
  with plots.panels(1, len(names), 2.9 * len(names), 3.8) as (figure, panels):
    for axes, name in zip(panels[0], names, strict=True):
      own = table.loc[name]
      order = sorted(own.index, key=lambda s: (_SCHEDULES.index(s[1]), s[0]))
      own = own.reindex(order)
      own.index = [f'{s.replace("_", " ")}, x{f:g}' for f, s in order]
      plots.heat_map(axes, own, low=0.5, high=1.0)
      axes.set_title(name)
      if axes is not panels[0][0]:
        axes.tick_params(labelleft=False)
    figure.suptitle('steps to target, fraction of T (–: not reached)')
    plots.save(figure, path)


def shares(runs: Sequence[Row]) -> pd.DataFrame:
  """Return the share of all runs that choose each candidate, by fraction of T.

  A choice of none counts as the first candidate, raw. Shares add up to less
  than 1 where some runs are over.

  Args:
    runs: of choices.json, with candidates in one order.
  """
  names = runs[0]['candidates']
  chosen = [
    (step / run['budget_steps'], names[max(which, 0)])
    for run in runs
    for step, which in run['choices'][AUTO]
  ]
  data = pd.DataFrame(chosen, columns=['time', 'name']).round(9)
  counts = data.value_counts(sort=False).unstack('name', fill_value=0)
  return counts.reindex(columns=names, fill_value=0) / len(runs)


def draw_choices(choices: Sequence[Row], path: pathlib.Path) -> None:
  """Draw the choices over time: a row a schedule, a column a workload.

  Args:
    choices: of choices.json.
    path: of the figure.
  """
  found = {(run['workload'], run['schedule']) for run in choices}
  workloads = sorted({workload for workload, _ in found})
  schedules = [
    s for s in _SCHEDULES if s in {schedule for _, schedule in found}
  ]
  size = (3.2 * len(workloads), 0.8 + 1.9 * len(schedules))
  shape = (len(schedules), len(workloads))
  with plots.panels(*shape, *size, sharex=True, sharey=True) as (fig, panels):
    for (schedule, workload), axes in zip(
      itertools.product(schedules, workloads), panels.flat, strict=True
    ):
      key = (workload, schedule)
      runs = [r for r in choices if (r['workload'], r['schedule']) == key]
      if not runs:
        axes.set_axis_off()
        continue
      data = shares(runs)
      colors = [
        '0.7',
        *(f'C{number}' for number in range(len(data.columns) - 1)),
      ]
      axes.stackplot(
        data.index, data.T, labels=data.columns, colors=colors, step='pre'
      )
      axes.set(xlim=(0, 1), ylim=(0, 1))
      axes.set_title(f'{workload}, {schedule.replace("_", " ")}')
      axes.grid(False)
      drawn = axes
    fig.supxlabel('fraction of T')
    fig.supylabel('share of runs (white: run is over)')
    plots.legend_above(fig, drawn, columns=len(data.columns))
    plots.save(fig, path)


def draw_trial(choices: Sequence[Choice], path: pathlib.Path) -> None:
  """Draw one run: above, the average shown; below, losses above the lowest."""
  steps = [choice.step for choice in choices]
  names = list(choices[0].losses)
  shown = list(dict.fromkeys([*names, *(choice.shown for choice in choices)]))
  with plots.panels(2, 1, 8, 5, sharex=True) as (figure, ((above,), (below,))):
    above.plot(steps, [shown.index(c.shown) for c in choices], 's', color='C0')
    above.set_yticks(range(len(shown)), shown)
    above.set_ylim(len(shown) - 0.5, -0.5)
    above.set_title('average that evaluation sees')
    lowest = [
      min(filter(math.isfinite, choice.losses.values()), default=math.nan)
      for choice in choices
    ]
    for name in names:
      losses = [choice.losses[name] for choice in choices]
      gaps = [
        loss - least if math.isfinite(loss) else math.nan
        for loss, least in zip(losses, lowest, strict=True)
      ]
      below.plot(steps, gaps, '.-', label=name, linewidth=0.8)
    below.set(xlabel='step', ylabel='loss on the probe above the lowest')
    # Between a probe's best losses and a long average's early ones: decades.
    below.set_yscale('symlog', linthresh=1e-3)
    below.set_ylim(bottom=0)
    below.legend()
    plots.save(figure, path)
