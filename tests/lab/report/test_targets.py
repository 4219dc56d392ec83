"""Targets and budgets of versions of the benchmark."""

import json

import log_folders
import pytest

from lab.core.errors import InputError
from lab.report import targets


@pytest.mark.parametrize('metric', sorted(targets.LOWER | targets.HIGHER))
def test_direction_of_each_metric(metric):
  higher = metric in ('accuracy', 'ssim', 'mean_average_precision', 'bleu')
  assert targets.higher_is_better(metric) == higher


def test_unknown_metric_is_refused():
  with pytest.raises(ValueError, match=r"^Invalid metric='speed'\. Must be"):
    targets.higher_is_better('speed')


def test_budgets_of_version_one():
  known = targets.of_version()
  assert len(known.base_workloads) == 9
  assert known.gpus == 4
  assert known.title == 'AlgoPerf 1.0'
  assert known.budget_seconds('wmt', 'external') == 16114
  assert known.budget_seconds('wmt', 'self') == 1.5 * 16114
  assert known.goals['finewebedu_lm'].column == 'validation/ppl'


def test_a_file_with_the_base_workloads_of_a_version_has_its_budgets(tmp_path):
  base = targets.of_version('0.5').base_workloads
  path = log_folders.write_targets(
    tmp_path / 'targets.json',
    {name: ('loss', 0.1, 50) for name in base},
    version='0.6',
  )
  read = targets.read(path)
  assert (read.version, read.gpus, read.invalid) == ('0.5', 8, ())
  assert read.title == 'targets.json (budgets of AlgoPerf 0.5)'
  assert read.goals['wmt'].target == 0.1
  assert read.goals['wmt'].step_hint == 50
  assert read.budget_seconds('wmt', 'external') == 48151
  path.write_text(path.read_text().replace('0.6', '7.0'))
  (line,) = targets.read(path).invalid
  assert "unknown version '7.0', time budgets are those of 0.5" in line


def test_unknown_version_and_unusable_targets_are_listed(tmp_path):
  path = log_folders.write_targets(
    tmp_path / 'targets.json',
    {'a': ('loss', 0.1, 50), 'b': ('speed', 1, 5), 'c': ('loss', 'x', 5)},
    base=['a', 'd'],
  )
  read = targets.read(path)
  assert list(read.goals) == ['a']
  assert read.version is None
  assert read.title == 'targets.json'
  assert read.budget_seconds('a', 'self') is None
  reasons = [line.removeprefix(f'{path}: ') for line in read.invalid]
  assert reasons[0].startswith("no usable target of b (Invalid metric='speed'")
  assert reasons[1].startswith('no usable target of c')
  assert reasons[2] == 'no target of base workload d.'
  assert reasons[3].startswith("unknown version '9.9'")


def test_held_out_workloads_of_a_file(tmp_path):
  base = targets.of_version('0.5').base_workloads
  names = [*base, 'wmt_glu_tanh', 'imagenet_vit_map']
  path = log_folders.write_targets(
    tmp_path / 'targets.json',
    {name: ('loss', 0.1, 50) for name in names},
    base=base,
    version='0.5',
  )
  content = json.loads(path.read_text())
  held_out = ['imagenet_vit_map', 'wmt_none', 'chess_fast', 'wmt_glu_tanh']
  path.write_text(json.dumps(content | {'held_out_workloads': held_out}))
  read = targets.read(path)
  assert read.held_out == {
    'imagenet_vit_map': 'imagenet_vit',
    'wmt_glu_tanh': 'wmt',
  }
  assert [line.removeprefix(f'{path}: ') for line in read.invalid] == [
    'no target of held-out workload wmt_none.',
    'held-out workload chess_fast has no base workload.',
  ]
  # Budgets of its base workload; own target and step hint.
  variant = read.goals['wmt_glu_tanh']
  assert variant.budget_seconds == 48151
  assert (variant.target, variant.step_hint) == (0.1, 50)
  # Local workloads are scored without them.
  local = targets.for_logs(read, {'glyph_resnet'})
  assert (local.base_workloads, local.held_out) == (('glyph_resnet',), {})


@pytest.mark.parametrize('text', ['', '[]', '{"workloads": {}}', 'null'])
def test_file_without_targets_is_refused(tmp_path, text):
  path = tmp_path / 'targets.json'
  path.write_text(text)
  with pytest.raises(InputError, match=r'^Cannot read targets from'):
    targets.read(path)


def test_local_workloads_are_scored_where_there_are_no_others():
  known = targets.of_version()
  local = targets.for_logs(known, {'glyph_resnet', 'stdlib_lm'})
  assert local.base_workloads == ('glyph_resnet', 'stdlib_lm')
  assert local.version is None
  mixed = targets.for_logs(known, {'glyph_resnet', 'wmt'})
  assert mixed.base_workloads == known.base_workloads
  assert 'glyph_resnet' in mixed.goals


def test_local_targets_are_the_calibrated_ones():
  from lab.workloads.targets import path

  calibration = json.loads(path('glyph_resnet').read_text())
  goal = targets.local_goals()['glyph_resnet']
  assert goal.target == calibration['validation_target']
  assert goal.higher_is_better
