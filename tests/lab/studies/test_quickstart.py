"""The quickstart's rows, sentence and figure, and a run of a few steps."""

import argparse

import pytest
from study_runs import curve, lines, result

from lab.studies import quickstart
from lab.workloads import build_workload, stdlib_lm


def runs(**arrives):
  """Runs of both optimizers and of the choice, where each method arrives."""
  default = {'raw': 80, 'lawa 1 %': 78, 'ema 1 %': 76, 'ema 3 %': 60}
  times = {'nadamw': default | arrives, 'shampoo': {'raw': 72, 'ema 1 %': 64}}
  found = [
    result(
      {name: curve(at) for name, at in curves.items()},
      'stdlib_lm',
      optimizer=optimizer,
    )
    for optimizer, curves in times.items()
  ]
  chosen = result(
    {'raw': curve(78), 'auto': curve(62)}, 'stdlib_lm', choices={'auto': []}
  )
  return [*found, chosen | {'learning_rate_factor': 1.0}]


def test_the_raw_weights_of_the_run_that_chooses_are_left_out():
  rows = quickstart.rows_of(runs())
  assert tuple(rows[0]) == quickstart.COLUMNS
  methods = [(row['optimizer'], row['candidate']) for row in rows]
  assert methods.count(('nadamw', 'raw')) == 1
  assert methods.count(('nadamw', 'auto')) == 1


def test_table_has_medians_over_seeds():
  second = [run | {'seed': 1} for run in runs(**{'ema 3 %': 64})]
  table = lines(quickstart.table(quickstart.rows_of(runs() + second)))
  (ema,) = [line for line in table if line[1] == 'NadamW, EMA 3 %']
  assert ema[2:6] == ['62', '0.62', '0.78', '6.2']
  (shampoo,) = [line for line in table if line[1] == 'Shampoo']
  assert shampoo[2:5] == ['72', '0.72', '0.90']


def test_the_sentence_follows_from_the_rows():
  assert quickstart.sentence(quickstart.rows_of(runs())) == (
    'On stdlib_lm (median of 1 seed), NadamW needs 80 steps to the target. Of '
    'these, the others need: NadamW, EMA 1 % 0.95, NadamW, EMA 3 % 0.75, '
    'NadamW, auto 0.78, Shampoo 0.90, Shampoo, EMA 1 % 0.80.'
  )
  worse = {'lawa 1 %': None, 'ema 1 %': None, 'ema 3 %': None}
  text = quickstart.sentence(quickstart.rows_of(runs(**worse)))
  assert 'NadamW, EMA 1 % more than all' in text
  never = quickstart.rows_of(runs(raw=None))
  assert quickstart.sentence(never) == (
    'On stdlib_lm, NadamW does not reach the target.'
  )


@pytest.mark.parametrize('raw', [80, None])
def test_the_figure_has_a_panel_for_each_optimizer(raw, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    quickstart.plots, 'save', lambda figure, path: drawn.append(figure)
  )
  quickstart.draw(quickstart.curves_of(runs(raw=raw)), tmp_path / 'c.png')
  nadamw, shampoo = drawn[0].axes
  labels = [text.get_text() for text in nadamw.get_legend().get_texts()]
  when = 'step 80' if raw else 'not reached'
  assert labels == [
    f'NadamW: {when}',
    'EMA 1 %: step 76',
    'EMA 3 %: step 60',
    'auto: step 62',
  ]
  assert (nadamw.get_title(), shampoo.get_title()) == ('NadamW', 'Shampoo')
  assert nadamw.get_ylabel() == 'validation loss (lower is better)'


def test_runs_of_the_quickstart_train(shrink, tmp_path):
  shrink(stdlib_lm.Workload, steps=8, eval_every_steps=2, target=0.0, size=8)
  options = argparse.Namespace(workloads=[quickstart.WORKLOAD], seeds=[0])
  runs = quickstart.trainings(options)
  assert [run.submission for run in runs] == [
    *('shampoo', 'nadamw', 'nadamw_auto')
  ]
  results = [run.execute(str(tmp_path)) for run in runs]
  rows = quickstart.rows_of(results)
  assert len(rows) == 2 * len(quickstart.CANDIDATES) + 1
  assert quickstart.table(rows)
  quickstart.draw(quickstart.curves_of(results), tmp_path / 'c.png')
  assert (tmp_path / 'c.png').stat().st_size > 10_000
  assert build_workload(quickstart.WORKLOAD).step_hint == 8
