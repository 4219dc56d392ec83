"""Check the content of the static figures without drawing them."""

import log_folders
import pytest

from lab.report import __main__ as command
from lab.report import curve_data, figures, targets
from lab.report.log_files import Evaluation

ODD = '_odd $name$'


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  folder = tmp_path_factory.mktemp('logs')
  log_folders.small_group(folder)
  rows = [(500, 10.0, 0.2), (1500, 300.0, 0.1)]
  log_folders.write_trial(folder, ODD, 'criteo1tb', rows)
  return command.read(command.parser().parse_args([str(folder), '--output=.']))


def _texts(container):
  return [text.get_text() for text in container.texts]


def test_profiles_name_each_submission_with_its_score(report):
  figure = figures.profiles(report)
  (ax,) = figure.axes
  lines = ax.get_lines()
  assert len(lines) == 3
  (legend,) = figure.legends
  names = [text.get_text() for text in legend.get_texts()]
  assert names[0] == 'fast (0.222)'
  # 30 / 11 of the fastest on one of nine: 42.5 of 99 steps of tau.
  # Neither mathematics nor a label that matplotlib hides.
  assert names[2].endswith(r'_odd \$name\$ (0.048)')
  assert not names[2].startswith('_')
  height = report.profiles.loc['fast'].tolist()
  assert lines[0].get_ydata().tolist() == height


def test_heat_map_has_the_seconds_of_each_cell(report):
  ax, _ = figures.time_to_target(report).axes
  # Rows by score: fast, slow, odd; columns criteo1tb, wmt.
  assert _texts(ax) == ['110', '200', '220', '600', '300', '–']


def test_bars_are_as_long_as_the_fraction_of_the_budget(report):
  criteo, wmt = figures.steps_to_target(report).axes[:2]
  widths = [bar.get_width() for bar in criteo.patches]
  assert widths == pytest.approx([1000 / 10666, 1000 / 10666, 1500 / 10666])
  assert [bar.get_width() for bar in wmt.patches] == [0.1, 0.1]
  assert _texts(wmt) == [' 0.10', ' 0.10', 'no logs']


@pytest.mark.parametrize(('by', 'last'), [('steps', 1500), ('seconds', 300.0)])
def test_curves_and_target_of_each_workload(report, by, last):
  criteo, _ = figures.metric_curves(report, by).axes[:2]
  *curves, target = criteo.get_lines()
  assert len(curves) == 3 + 3 + 1
  assert set(target.get_ydata()) == {0.123735}
  assert curves[-1].get_xdata()[-1] == last
  assert curves[-1].get_ydata().tolist() == [0.2, 0.1]


def test_a_resumed_run_is_drawn_once():
  rows = [(10, 1.0, 0.5), (20, 2.0, 0.4), (20, 2.5, 0.3), (30, 3.0, None)]
  evaluations = [
    Evaluation(step=s, seconds=t, value=float('nan') if v is None else v)
    for s, t, v in rows
  ]
  assert [e.value for e in curve_data.kept(evaluations)] == [0.5, 0.3]


def _curve(values):
  steps = list(range(len(values)))
  return curve_data.Curve('a', 'x', 's', steps, steps, values)


@pytest.mark.parametrize(
  ('metric', 'target', 'values', 'hidden', 'seen'),
  [
    ('ppl', 22.0, [60000.0, 40.0, 30.0, 25.0, 23.0], [60000.0], [22.0, 23.0]),
    ('bleu', 30.0, [0.0, 25.0, 27.0, 28.0, 29.0], [0.0], [30.0, 29.0]),
    ('loss', 0.5, [], [2.0], [0.5]),
    ('loss', 0.5, [0.5], [2.0], [0.5]),
  ],
)
def test_axes_show_the_target_and_leave_out_the_start(
  metric, target, values, hidden, seen
):
  goal = targets.Goal(metric=metric, target=target)
  low, high = curve_data.value_range([_curve(values)], goal)
  assert all(low < value < high for value in seen)
  assert not any(low < value < high for value in hidden)
