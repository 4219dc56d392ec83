"""Interactive figures for the page, by plotly.

A trace belongs to a submission, which its `legendgroup` names: the page shows
and hides submissions by it. Colours of text and grid are left to the page.
"""

import dataclasses
import html
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lab.report import curve_data, figures, hyperparameters
from lab.report.report import Report


@dataclasses.dataclass(frozen=True)
class Chart:
  """One plot.

  Args:
    section: Heading of the plots that it belongs to.
    title: Heading of the plot; may be empty.
    figure: plotly's figure as plain lists and dictionaries.
    wide: Takes the whole width of the page.
    scrolls: Keeps a least width and scrolls on a narrow screen.
  """

  section: str
  title: str
  figure: dict[str, Any]
  wide: bool = False
  scrolls: bool = False


def _labels(report: Report) -> dict[str, str]:
  """Labels of the submissions as plotly's text."""
  labels = curve_data.labels(report.submissions)
  return {name: shown(label) for name, label in labels.items()}


def shown(text: str) -> str:
  """A name as plotly's text, which reads a subset of HTML.

  >>> shown('<b>a</b>')
  '&lt;b&gt;a&lt;/b&gt;'
  """
  return html.escape(text, quote=False)


def all_charts(report: Report) -> list[Chart]:
  """Charts that the logs give rise to, in the order of the page."""
  charts = [_profiles(report)]
  # Logs may hold no base workload.
  if set(report.workloads) & set(report.ratios.columns):
    charts.append(_heat_map(report))
  charts += _bars(report)
  for by, section in (('steps', 'steps'), ('seconds', 'billed time')):
    charts += _curves(report, by, f'Validation metric against {section}')
  for name, table in report.sweeps.items():
    if len(table):
      charts += _sweep(report, name)
  return charts


def _figure(traces: list[Any], **layout: Any) -> dict[str, Any]:
  figure = go.Figure(
    traces,
    {
      'template': 'none',
      'showlegend': False,
      'margin': {'l': 54, 'r': 12, 't': 10, 'b': 44},
      'paper_bgcolor': 'rgba(0,0,0,0)',
      'plot_bgcolor': 'rgba(0,0,0,0)',
      'height': 300,
      'dragmode': False,
    },
  )
  figure.update_layout(**layout)
  figure.update_xaxes(automargin=True, zeroline=False)
  figure.update_yaxes(automargin=True, zeroline=False)
  return figure.to_plotly_json()


def _line(report: Report, submission: str, width: float = 2) -> dict[str, Any]:
  index = report.submissions.index(submission)
  return {
    'color': curve_data.colour(index),
    'dash': curve_data.dash(index),
    'width': width,
  }


def _profiles(report: Report) -> Chart:
  labels = _labels(report)
  traces = [
    go.Scatter(
      x=[float(tau) for tau in report.profiles.columns],
      y=report.profiles.loc[name].tolist(),
      name=labels[name],
      legendgroup=name,
      mode='lines',
      line=_line(report, name) | {'shape': 'hv'},
      hovertemplate='%{y:.0%}',
    )
    for name in report.submissions
  ]
  figure = _figure(
    traces,
    height=380,
    # Overlapping lines hide each other; the list has every submission.
    hovermode='x unified',
    xaxis={
      'title': 'time relative to the fastest submission, tau',
      'hoverformat': '.2f',
      'spikethickness': 1,
    },
    yaxis={'title': 'fraction of workloads', 'range': [0, 1.02]},
  )
  return Chart('Performance profiles', '', figure, wide=True)


def _heat_map(report: Report) -> Chart:
  """Cells by ratio; their `meta` names the submission of each row.

  Cells without a ratio are text, a trace per submission, since plotly gives the
  text of an empty cell no readable colour in one of the themes.
  """
  labels = _labels(report)
  base = [w for w in report.workloads if w in report.ratios.columns]
  seconds = report.medians.set_index(['submission', 'workload'])['seconds']
  ratios = report.ratios.loc[report.submissions, base].to_numpy(dtype=float)
  times = [
    [float(seconds.get((name, w), math.nan)) for w in base]
    for name in report.submissions
  ]
  cells = go.Heatmap(
    x=base,
    y=[labels[name] for name in report.submissions],
    z=[[r if math.isfinite(r) else None for r in row] for row in ratios],
    text=[
      [
        f'{t:,.0f}' if math.isfinite(r) else ''
        for t, r in zip(*rows, strict=True)
      ]
      for rows in zip(times, ratios, strict=True)
    ],
    texttemplate='%{text}',
    hovertemplate='%{y}, %{x}: %{text} s, %{z:.2f} x fastest',
    name='',
    meta=report.submissions,
    zmin=1,
    zmax=4,
    colorscale='Viridis',
    reversescale=True,
    colorbar={'title': {'text': '/ fastest'}, 'thickness': 10},
    hoverongaps=False,
    xgap=1,
    ygap=1,
  )
  traces: list[Any] = [cells]
  for name, row, ratio in zip(report.submissions, times, ratios, strict=True):
    empty = [
      (workload, *_uncounted(time))
      for workload, time, r in zip(base, row, ratio, strict=True)
      if not math.isfinite(r)
    ]
    workloads, texts, reasons = zip(*empty, strict=True) if empty else ((),) * 3
    traces.append(
      go.Scatter(
        x=list(workloads),
        y=[labels[name]] * len(empty),
        text=list(texts),
        customdata=list(reasons),
        mode='text',
        name='',
        legendgroup=name,
        hovertemplate='%{y}, %{x}: %{customdata}',
      )
    )
  figure = _figure(
    traces,
    height=150 + 30 * len(report.submissions),
    yaxis={'autorange': 'reversed', 'type': 'category', 'showgrid': False},
    xaxis={'type': 'category', 'tickangle': -40, 'showgrid': False},
  )
  title = 'Seconds to target, relative to the fastest'
  return Chart(title, '', figure, wide=True, scrolls=True)


def _uncounted(seconds: float) -> tuple[str, str]:
  """Text of a cell without a ratio, and its explanation."""
  if math.isnan(seconds):
    return '', 'no logs'
  if math.isinf(seconds):
    return '–', 'missed'
  text = f'{seconds:,.0f}'
  return text, f'{text} s, beyond 4 x the fastest or held-out workload missed'


def _bars(report: Report) -> list[Chart]:
  labels = _labels(report)
  keyed = report.medians.set_index(['submission', 'workload'])
  fractions = keyed['fraction_of_budget']
  charts = []
  for workload in report.workloads:
    traces = []
    largest = 1.0
    for i, name in enumerate(report.submissions):
      value = float(fractions.get((name, workload), math.inf))
      reached = math.isfinite(value)
      largest = max(largest, value) if reached else largest
      absent = (name, workload) not in keyed.index
      traces.append(
        go.Bar(
          x=[value if reached else 0],
          y=[labels[name]],
          orientation='h',
          name='',
          legendgroup=name,
          marker_color=curve_data.colour(i),
          text=[
            f'{value:.2f}' if reached else 'no logs' if absent else 'missed'
          ],
          textposition='outside',
          hovertemplate='%{y}: %{text}',
        )
      )
    figure = _figure(
      traces,
      height=90 + 24 * len(report.submissions),
      barmode='overlay',
      xaxis={
        'title': 'steps to target / step hint',
        'range': [0, 1.15 * largest],
      },
      yaxis={'autorange': 'reversed', 'type': 'category', 'showgrid': False},
    )
    charts.append(Chart('Steps to target', workload, figure))
  return charts


def _curves(report: Report, by: str, section: str) -> list[Chart]:
  labels = _labels(report)
  curves = curve_data.curves(report)
  charts = []
  for workload in report.workloads:
    goal = report.targets.goals[workload]
    drawn = [c for c in curves if c.workload == workload]
    traces = [
      go.Scatter(
        x=getattr(curve, by),
        y=[float(f'{value:.6g}') for value in curve.values],
        name=f'{labels[curve.submission]}, {shown(curve.study)}',
        legendgroup=curve.submission,
        mode='lines',
        line=_line(report, curve.submission, 1.5),
        hovertemplate=f'{goal.metric} %{{y:.5g}} at %{{x:,.0f}}',
      )
      for curve in drawn
    ]
    target = {
      'type': 'line',
      'xref': 'paper',
      'x0': 0,
      'x1': 1,
      'y0': goal.target,
      'y1': goal.target,
      'line': {'dash': 'dot', 'width': 1.5},
    }
    figure = _figure(
      traces,
      shapes=[target],
      xaxis_title='steps' if by == 'steps' else 'billed seconds',
      yaxis={
        'title': goal.metric,
        'range': list(curve_data.value_range(drawn, goal)),
      },
    )
    charts.append(Chart(section, workload, figure))
  return charts


def _sweep(report: Report, name: str) -> list[Chart]:
  table = report.sweeps[name]
  labels = _labels(report)
  title = f'Steps to target against {name} (crosses: missed)'
  charts = []
  for workload in report.workloads:
    rows = table[table['workload'] == workload]
    if not len(rows):
      continue
    top = curve_data.sweep_top(rows)
    traces = []
    for submission, group in rows.groupby('submission'):
      color = _line(report, str(submission))['color']
      reached = np.isfinite(group['fraction_of_budget'])
      missed = group[~reached]
      common = {
        'name': labels[str(submission)],
        'legendgroup': str(submission),
      }
      traces += [
        go.Scatter(
          x=group[reached]['value'].tolist(),
          y=group[reached]['fraction_of_budget'].tolist(),
          mode='markers',
          marker={'color': color},
          hovertemplate=f'{name} %{{x}}: %{{y:.3f}}',
          **common,
        ),
        # At the upper edge.
        go.Scatter(
          x=missed['value'].tolist(),
          y=[top] * len(missed),
          mode='markers',
          marker={'color': color, 'symbol': 'x'},
          cliponaxis=False,
          hovertemplate=f'{name} %{{x}}: missed',
          **common,
        ),
      ]
    traces += [
      _fit(report, fitted)
      for fitted in report.fits.get(name, [])
      if fitted['workload'] == workload
    ]
    axis: dict[str, Any] = {'title': name}
    if name in hyperparameters.NUMERIC:
      limits = rows['value'].min() / 1.2, rows['value'].max() * 1.2
      axis |= {
        'type': 'log',
        'range': [math.log10(limit) for limit in limits],
        'nticks': 6,
      }
    figure = _figure(
      traces,
      xaxis=axis,
      yaxis={'title': 'steps to target / step hint', 'range': [0, top]},
    )
    charts.append(Chart(title, workload, figure))
  return charts


def _fit(report: Report, fitted: dict[str, Any]) -> Any:
  """The fitted parabola of a submission."""
  x, y = figures.fit_line(fitted)
  return go.Scatter(
    x=x.tolist(),
    y=y.tolist(),
    name=f'{_labels(report)[fitted["submission"]]}, fit',
    legendgroup=fitted['submission'],
    mode='lines',
    line=_line(report, fitted['submission'], 1),
    hoverinfo='skip',
  )
