"""CSV and JSON files of a trial."""

import csv
import json

import numpy as np
import pytest
import torch

from lab.core import logs


def read(path):
  with open(path, newline='') as file:
    return list(csv.reader(file))


def test_first_columns_are_sorted_and_new_ones_come_last(tmp_path):
  table = logs.Table(str(tmp_path / 'm.csv'))
  table.append({'b': 1, 'a': 2.5})
  table.append({'c': 3, 'a': 4})
  table.append({'b': 5, 'a': 6})
  assert read(tmp_path / 'm.csv') == [
    ['a', 'b', 'c'],
    ['2.5', '1', ''],
    ['4', '', '3'],
    ['6', '5', ''],
  ]


def test_an_existing_table_is_continued(tmp_path):
  path = str(tmp_path / 'm.csv')
  logs.Table(path).append({'a': 1, 'b': 2})
  logs.Table(path).append({'a': 3, 'c': 4})
  assert read(path) == [['a', 'b', 'c'], ['1', '2', ''], ['3', '', '4']]


def test_a_half_written_last_line_is_dropped(tmp_path):
  path = tmp_path / 'm.csv'
  path.write_text('a,b,c\n1,2,3\n4,')
  logs.Table(str(path)).append({'a': 7, 'b': 8, 'c': 9, 'd': 10})
  assert [row[0] for row in read(path)] == ['a', '1', '7']


@pytest.mark.parametrize('step', [-1, 5, 10])
def test_rewind_drops_what_came_after_an_evaluation(tmp_path, step):
  logger = logs.MetricsLogger(str(tmp_path))
  for start in (0, 5, 10):
    logger.append_scalar_metrics({'loss': 1.0}, start)
    evaluation = {'total_duration': 1.0, 'validation/loss': 0.5}
    logger.append_scalar_metrics(evaluation, start + 5, 0, is_eval=True)
  again = logs.MetricsLogger(str(tmp_path))
  again.rewind(step)
  evals = read(tmp_path / logs.EVAL_MEASUREMENTS)
  column = evals[0].index('global_step')
  assert [int(row[column]) for row in evals[1:]] == (
    [s for s in (5, 10, 15) if s <= step]
  )
  everything = read(tmp_path / logs.MEASUREMENTS)
  column = everything[0].index('global_step')
  assert [int(row[column]) for row in everything[1:]] == (
    [0, 5, 5, 10][: 2 * step // 5 if step > 0 else 0]
  )


def test_metrics_become_python_scalars(tmp_path):
  logger = logs.MetricsLogger(str(tmp_path))
  metrics = {'a': torch.tensor(0.5), 'b': np.float32(0.25), 'c': 1}
  logger.append_scalar_metrics(metrics, 3)
  # The caller's dictionary is the submission's too: it stays as it was.
  assert set(metrics) == {'a', 'b', 'c'}
  assert read(tmp_path / logs.MEASUREMENTS) == [
    ['a', 'b', 'c', 'global_step'],
    ['0.5', '0.25', '1', '3'],
  ]


def test_json_is_replaced_in_one_go(tmp_path, monkeypatch):
  path = tmp_path / 'x.json'
  logs.write_json(str(path), {'a': 1})
  with pytest.raises(TypeError):
    logs.write_json(str(path), {'a': object()})
  assert json.loads(path.read_text()) == {'a': 1}
  assert logs.read_json(str(path)) == {'a': 1}
  assert logs.read_json(str(tmp_path / 'missing.json')) is None


def test_meta_data_holds_constants_and_survives_a_property_that_fails():
  class Workload:
    step_hint = 7
    model = object()

    @property
    def param_shapes(self):
      raise ValueError('too early')

    @property
    def odd(self):
      raise ValueError('never')

  content = logs.meta_data(Workload(), rng_seed=3)
  assert content['workload.step_hint'] == 7
  assert content['rng_seed'] == 3
  assert content['torch_version'] == torch.__version__
  assert not any('odd' in key or key[9:] == 'model' for key in content)
  json.dumps(content)
