"""Check the content of the static figures without drawing them."""

import log_folders
import matplotlib.image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.report import __main__ as command
from lab.report import charts, curve_data, figures, targets
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


@given(st.lists(st.text('ab', max_size=12), unique=True), st.integers(8, 12))
def test_labels_are_short_and_all_different(names, width):
  labels = curve_data.labels(names, width)
  assert list(labels) == names
  assert len(set(labels.values())) == len(names)
  # A number tells apart those that are equal when shortened.
  assert all(len(label) <= width + 2 for label in labels.values())
  if all(len(name) <= width for name in names):
    assert list(labels.values()) == names


def test_names_that_differ_in_the_middle_get_numbers():
  names = [f'a_long_{middle}_name' for middle in ('first', 'other', 'third')]
  labels = curve_data.labels(names, 9)
  assert list(labels.values()) == ['a_lo…name', 'a_l…me 2', 'a_l…me 3']


@pytest.mark.slow
def test_long_names_fit_into_the_pictures(tmp_path):
  # A warning, such as of a letter that no font has, would be an error.
  for name in ('a' * 200, 'a' * 100 + 'b' * 100, '漢字 🚀'):
    log_folders.write_trial(tmp_path / 'logs', name, 'wmt', [(9, 9.0, 40.0)],
                            metric='bleu')  # fmt: skip
  arguments = [str(tmp_path / 'logs'), '--output=.']
  report = command.read(command.parser().parse_args(arguments))
  figures.save_all(report, tmp_path / 'figures')
  for path in (tmp_path / 'figures').glob('*.png'):
    picture = matplotlib.image.imread(path)[..., :3]
    edges = picture[:, :2], picture[:, -2:], picture[:2], picture[-2:]
    assert all((edge == 1).all() for edge in edges), path.name


def test_logs_without_a_base_workload_have_no_heat_map(tmp_path):
  goals = {'wmt_post_ln': ('bleu', 30.0, 100), 'wmt': ('bleu', 30.0, 100)}
  log_folders.write_trial(
    tmp_path, 'a', 'wmt_post_ln', [(9, 9.0, 40.0)], metric='bleu'
  )
  path = log_folders.write_targets(
    tmp_path / 'workload_targets.json', goals, base=['wmt']
  )
  arguments = [str(path.parent), '--output=.']
  report = command.read(command.parser().parse_args(arguments))
  assert report.scores['score'].tolist() == [0.0]
  drawn = figures.save_all(report, tmp_path / 'figures')
  assert 'time_to_target' not in drawn
  assert 'steps_to_target' in drawn
  sections = {chart.section for chart in charts.all_charts(report)}
  assert 'Seconds to target, relative to the fastest' not in sections
  assert 'Performance profiles' in sections


@pytest.mark.parametrize(
  'value',
  [
    1e308,
    pytest.param(-1e308, marks=pytest.mark.slow),
    pytest.param(3.4e38, marks=pytest.mark.slow),
  ],
)
def test_diverged_runs_are_drawn_beside_others(tmp_path, value):
  for name, end in (('a', value), ('b', 0.1), ('c', -value)):
    rows = [(i, float(i), 0.5 if i < 3 else end) for i in range(1, 9)]
    log_folders.write_trial(tmp_path / 'logs', name, 'criteo1tb', rows)
  arguments = [str(tmp_path / 'logs'), '--output=.']
  report = command.read(command.parser().parse_args(arguments))
  assert 'metric_by_steps' in figures.save_all(report, tmp_path / 'figures')
  ax = figures.metric_curves(report, 'steps').axes[0]
  low, high = ax.get_ylim()
  # Three times the target away at most, and the axis' margin.
  assert -0.4 < low < 0.1 < high < 0.6


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
