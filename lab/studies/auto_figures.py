"""Figures of the study of the choice among averages."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Where a run that never arrives is drawn, in fractions of T.
_NEVER = 1.06
_MARKERS = 'osD^'
_SCHEDULES = ('cosine', 'cosine_to_half', 'constant')


def _pyplot() -> Any:
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  return pyplot


def _ordered(settings: Any) -> list[Any]:
  """Settings of one workload by schedule, then by learning rate."""
  return sorted(settings, key=lambda s: (_SCHEDULES.index(s[2]), s[1]))


def draw_steps(
  curves: Mapping[str, Mapping[tuple[str, float, str], float]], path: str
) -> None:
  """One panel a workload: fraction of T to the target at every setting.

  Args:
    curves: by legend and setting; inf where the target was not reached.
    path: of the figure.
  """
  pyplot = _pyplot()
  every = {setting for curve in curves.values() for setting in curve}
  names = sorted({setting[0] for setting in every})
  figure, panels = pyplot.subplots(
    *(1, len(names)),
    figsize=(3.6 * len(names), 4.0),
    sharey=True,
    squeeze=False,
    layout='constrained',
  )
  for axes, name in zip(panels[0], names, strict=True):
    settings = _ordered(s for s in every if s[0] == name)
    for number, (label, curve) in enumerate(curves.items()):
      shift = 0.14 * (number - (len(curves) - 1) / 2)
      for schedule in _SCHEDULES:
        mine = [(i, s) for i, s in enumerate(settings) if s[2] == schedule]
        axes.plot(
          [i + shift for i, _ in mine],
          [min(curve[s], _NEVER) for _, s in mine],
          _MARKERS[number % len(_MARKERS)] + '-',
          color=f'C{number}',
          label=label if schedule == settings[0][2] else None,
          linewidth=0.8,
          markersize=5,
          markerfacecolor='none',
        )
    axes.axhspan(_NEVER - 0.03, _NEVER + 0.03, color='0.92')
    axes.set_xticks(
      range(len(settings)),
      [f'{s[2].replace("_", " ")}, x{s[1]:g}' for s in settings],
      rotation=90,
      fontsize='small',
    )
    axes.set_title(name)
    axes.grid(color='0.92', axis='y')
  first = panels[0][0]
  first.set_ylim(top=_NEVER + 0.03)
  ticks = [tick / 10 for tick in range(0, 11)]
  low = first.get_ylim()[0]
  shown = [tick for tick in ticks if tick >= low]
  first.set_yticks(
    [*shown, _NEVER], [*(f'{tick:g}' for tick in shown), 'not reached']
  )
  first.set_ylim(low, _NEVER + 0.03)
  first.set_ylabel('steps to target, fraction of T (median)')
  figure.legend(
    *first.get_legend_handles_labels(),
    loc='outside upper center',
    ncols=len(curves),
    frameon=False,
  )
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def shares(
  runs: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[list[float], list[list[float]]]:
  """Of all runs, the share that chooses each candidate at each evaluation.

  Args:
    runs: of choices.json, with candidates in one order.
    names: of the candidates; a choice of none counts as the first, raw.

  Returns:
    Fractions of T; for each candidate, its shares there. Their sum is below 1
    where some runs are over already.
  """
  counts: dict[float, list[int]] = {}
  for run in runs:
    for step, which in run['choices']['auto']:
      time = round(step / run['budget_steps'], 9)
      counts.setdefault(time, [0] * len(names))[max(which, 0)] += 1
  times = sorted(counts)
  columns = [
    [counts[t][i] / len(runs) for t in times] for i in range(len(names))
  ]
  return times, columns


def draw_choices(choices: Sequence[Mapping[str, Any]], path: str) -> None:
  """Which candidate was chosen when: a row a schedule, a column a workload."""
  pyplot = _pyplot()
  workloads = sorted({run['workload'] for run in choices})
  schedules = [
    s for s in _SCHEDULES if any(run['schedule'] == s for run in choices)
  ]
  figure, panels = pyplot.subplots(
    *(len(schedules), len(workloads)),
    figsize=(3.2 * len(workloads), 0.8 + 1.9 * len(schedules)),
    sharex=True,
    sharey=True,
    squeeze=False,
    layout='constrained',
  )
  handles = {}
  for schedule, row in zip(schedules, panels, strict=True):
    for workload, axes in zip(workloads, row, strict=True):
      runs = [
        run
        for run in choices
        if (run['workload'], run['schedule']) == (workload, schedule)
      ]
      if not runs:
        axes.set_axis_off()
        continue
      names = runs[0]['candidates']
      times, columns = shares(runs, names)
      bottom = [0.0] * len(times)
      width = min(times, default=1.0)
      for number, (name, column) in enumerate(zip(names, columns, strict=True)):
        handles[name] = axes.bar(
          [time - width / 2 for time in times],
          column,
          width,
          bottom,
          color='0.7' if name == 'raw' else f'C{number - 1}',
        )
        bottom = [a + b for a, b in zip(bottom, column, strict=True)]
      axes.set(xlim=(0, 1), ylim=(0, 1))
      axes.set_title(f'{workload}, {schedule.replace("_", " ")}', fontsize=9)
  figure.supxlabel('fraction of T')
  figure.supylabel('share of runs (white: run is over)')
  figure.legend(
    handles.values(),
    handles.keys(),
    loc='outside upper center',
    ncols=len(handles),
    frameon=False,
  )
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def draw_run(
  steps: Sequence[int],
  losses: Mapping[str, Sequence[float]],
  shown: Sequence[str],
  path: str,
) -> None:
  """One run: above, what was shown; below, losses above the lowest one.

  Args:
    steps: of the evaluations.
    losses: by candidate; one that is not finite is left out.
    shown: at each evaluation, a name.
    path: of the figure.
  """
  pyplot = _pyplot()
  figure, (above, below) = pyplot.subplots(
    *(2, 1), figsize=(8, 5), sharex=True, layout='constrained'
  )
  names = list(dict.fromkeys([*losses, *shown]))
  above.plot(steps, [names.index(n) for n in shown], 's', color='C0')
  above.set_yticks(range(len(names)), names)
  above.set_ylim(len(names) - 0.5, -0.5)
  above.set_title('average that evaluation sees')
  columns = zip(*losses.values(), strict=True)
  lowest = [min(filter(math.isfinite, c), default=math.nan) for c in columns]
  for name, curve in losses.items():
    gaps = [
      loss - least if math.isfinite(loss) else math.nan
      for loss, least in zip(curve, lowest, strict=True)
    ]
    below.plot(steps, gaps, '.-', label=name, linewidth=0.8)
  below.set(xlabel='step', ylabel='loss on the probe above the lowest')
  # Between a probe's best losses and a long average's early ones: decades.
  below.set_yscale('symlog', linthresh=1e-3)
  below.set_ylim(bottom=0)
  for axes in (above, below):
    axes.grid(color='0.92')
  below.legend(frameon=False, fontsize='small')
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
