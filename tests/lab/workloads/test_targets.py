"""Tuned points, targets and calibrations of the workloads."""

import json
import pathlib

import numpy as np
import pytest
from workload_runs import built, each_workload

from lab import workloads
from lab.studies.parts import tuned
from lab.studies.parts.methods import METHODS
from lab.studies.parts.training import tuned_point
from lab.workloads import (
  targets,
)
from weightavg import spec
from weightavg.pytorch.build_nadamw import NADAMW
from weightavg.schemes import Raw
from weightavg.submission_config import SubmissionConfig

TRAIN, EVAL = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL


@each_workload
def test_tuned_point_belongs_to_the_baseline(name):
  root = pathlib.Path(workloads.__file__).parents[2]
  (point,) = json.loads((root / built(name).tuned_search_space).read_text())
  SubmissionConfig.from_point(point, NADAMW, Raw)
  won = tuned.winners(name, 'nadamw').get('raw')
  if won is not None:
    assert point == METHODS['nadamw'].point(won['point'])
    return
  # Not searched yet: a published point with another learning rate.
  published = json.loads(
    (root / 'tuning_search_spaces' / 'nadamw.json').read_text()
  )
  rest = {k: v for k, v in point.items() if k != 'learning_rate'}
  assert any(rest.items() <= known.items() for known in published)


@each_workload
def test_target_is_the_median_of_its_calibration(name, monkeypatch):
  workload = built(name)
  record = json.loads(targets.path(name).read_text())
  # A new search makes the target an old one.
  assert record['point'] == tuned_point(name)
  for split in ('validation', 'test'):
    values = [run[split] for run in record['seeds']]
    assert len(values) >= 5
    assert record[f'{split}_target'] == np.median(values)
  monkeypatch.setattr(
    workload, 'data_fingerprint', lambda: record['data_fingerprint']
  )
  target = workload.validation_target_value
  assert target == record['validation_target']
  sign = 1 if workload.higher_is_better else -1
  key = f'validation/{workload.target_metric_name}'
  assert workload.has_reached_validation_target({key: target + sign * 1e-6})
  assert not workload.has_reached_validation_target({key: target})
  assert not workload.has_reached_validation_target({key: float('nan')})
  test_key = f'test/{workload.target_metric_name}'
  test_target = workload.test_target_value
  assert workload.has_reached_test_target({test_key: test_target + sign})
  assert not workload.has_reached_test_target({test_key: test_target - sign})
  assert record['step_hint'] == workload.step_hint
  assert record['batch_size'] == workload.batch_size


class FakeWorkload:
  name = 'fake'

  def data_fingerprint(self):
    return 'mine'


@pytest.fixture
def calibrations(tmp_path, monkeypatch):
  monkeypatch.setattr(targets, '_FOLDER', tmp_path)
  targets._load.cache_clear()
  targets._warn_once.cache_clear()
  return tmp_path


def test_missing_calibration_is_an_error_when_asked_for(calibrations):
  with pytest.raises(ValueError, match=r'calibrate --workloads=fake'):
    targets.read(FakeWorkload())


@pytest.mark.parametrize('text', ['{', '[]', '{"validation_target": 1}'])
def test_broken_calibration_is_named(calibrations, text):
  (calibrations / 'fake.json').write_text(text)
  with pytest.raises(ValueError, match=r'fake\.json holds no targets'):
    targets.read(FakeWorkload())


def test_other_data_than_calibrated_warn_once(calibrations, caplog):
  record = {
    'validation_target': 0.5,
    'test_target': 0.25,
    'data_fingerprint': 'theirs',
    'versions': {'python': '3.11.7'},
  }
  (calibrations / 'fake.json').write_text(json.dumps(record))
  for _ in range(2):
    assert targets.read(FakeWorkload())['test_target'] == 0.25
  (warning,) = caplog.records
  assert 'fake' in warning.message
  assert '3.11.7' in warning.message
