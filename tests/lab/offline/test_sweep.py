"""The runner's light checkpoints, and sweeps over them."""

import csv
import errno
import json
import os

import pytest
import torch
from torch import nn

from lab.core import curves, light_files, logs
from lab.core.errors import InputError
from lab.offline import batch_norm, series, sweep
from lab.offline.__main__ import main
from lab.run import light_checkpoints, runner, validation
from lab.run.distributed import Context
from lab.run.settings import Settings
from lab.run.trial import TrialRun
from lab.workloads import build_workload, click_dlrm, glyph_resnet
from weightavg.schemes import Ema, Lawa


@pytest.fixture
def small(shrink):
  for module in (click_dlrm, glyph_resnet):
    shrink(module.Workload, target=0.5, size=64)


def settings(folder, workload='click_dlrm', submission='nadamw', **changes):
  values = {
    'workload': workload,
    'submission_path': f'submissions/{submission}/submission.py',
    'tuning_search_space': build_workload(workload).tuned_search_space,
    'experiment_dir': str(folder),
    'experiment_name': 'run',
    'rng_seed': 0,
    'max_global_steps': 8,
    'eval_every_steps': 4,
    'run_to_budget': True,
    'save_checkpoints': False,
    'save_every': 1,
  }
  return Settings(**(values | changes))


def train(given):
  (trial,) = validation.prepare(given, Context(), drawn_seed=0)
  os.makedirs(trial.directory, exist_ok=True)
  TrialRun(trial, {}).run()
  return trial.directory


def tensors(directory, step):
  found = series.find([light_files.path_of(directory, '*')])
  with found.open(found.position(step)) as checkpoint:
    return {n: checkpoint.tensor(n).clone() for n in checkpoint.layout}


def test_light_checkpoints_hold_raw_weights_whatever_is_evaluated(
  small, tmp_path
):
  plain = train(settings(tmp_path / 'a', submission='nadamw'))
  averaged = train(settings(tmp_path / 'b', submission='nadamw_lawa'))
  assert (
    light_files.steps(plain) == light_files.steps(averaged) == list(range(1, 9))
  )
  for step in (4, 5, 8):
    one, two = tensors(plain, step), tensors(averaged, step)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_every_and_keep_bound_what_is_kept(small, tmp_path):
  directory = train(settings(tmp_path, save_every=2, keep=3))
  assert light_files.steps(directory) == [4, 6, 8]


def test_keep_leaves_later_steps_of_an_interrupted_run(tmp_path):
  model = nn.Linear(2, 2)
  for step in (1, 2, 9):
    light_checkpoints.save(model, str(tmp_path), step)
  light_checkpoints.save(model, str(tmp_path), 3, keep=2)
  assert light_files.steps(str(tmp_path)) == [2, 3, 9]


def test_keep_without_save_every_is_refused(tmp_path, capsys, monkeypatch):
  from absl import flags

  import lab.run.flags

  values = flags.FLAGS
  values(['test', '--keep=3'])
  try:
    with pytest.raises(InputError, match='--keep needs --save_every'):
      lab.run.flags.settings()
  finally:
    values['keep'].unparse()
  assert runner.flags is flags


def rows_of(path):
  with open(path, encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


def swept(directory, workload, *arguments):
  return main(['sweep', '--run', directory, '--workload', workload, *arguments])


def test_a_sweep_equals_the_submission_that_averaged_online(small, tmp_path):
  # LAWA over the last 5 samples, one each step: a horizon of 1 % of T = 500.
  plain = train(settings(tmp_path / 'a'))
  assert not swept(plain, 'click_dlrm', '--windows', '1,5', '--decays', '0.5')
  base = os.path.join(plain, 'offline')
  # The last sample alone is what the run itself has evaluated.
  own = rows_of(os.path.join(plain, 'eval_measurements.csv'))
  found = rows_of(os.path.join(
    base, 'lawa_window_1_every_1', 'click_dlrm_pytorch', 'trial_1',
    'eval_measurements.csv',
  ))  # fmt: skip
  assert [list(row) for row in found] == [list(row) for row in own]
  assert [r['validation/loss'] for r in found] == [
    r['validation/loss'] for r in own
  ]
  assert [r['score'] for r in found] == [r['score'] for r in own]
  table = rows_of(os.path.join(base, 'sweep.csv'))
  assert [(r['scheme'], r['global_step']) for r in table] == [
    ('lawa', '4'), ('lawa', '8'), ('lawa', '4'), ('lawa', '8'),
    ('ema', '4'), ('ema', '8'),
  ]  # fmt: skip
  path = os.path.join(base, 'ema_decay_0.5_every_1/click_dlrm_pytorch/trial_1')
  curve = curves.read_curve(
    os.path.join(path, 'eval_measurements.csv'), 'validation/loss'
  )
  assert [point.step for point in curve] == [4, 8]
  assert len({r['validation/loss'] for r in table}) == 6


def test_a_sweep_takes_horizons_and_powers_as_average_does(small, tmp_path):
  directory = train(settings(tmp_path))
  # Of T = 20 steps: N = 2 and 4 samples at one per step.
  assert not swept(
    directory, 'click_dlrm', '--horizons', '0.1,0.2', '--powers', '4',
    '--budget', '20',
  )  # fmt: skip
  assert not swept(
    directory, 'click_dlrm', '--windows', '2,4', '--decays', '0.5,0.75',
    '--output_dir', str(tmp_path / 'samples'),
  )  # fmt: skip
  table = rows_of(os.path.join(directory, 'offline', 'sweep.csv'))
  losses = {
    (r['scheme'], r['horizon'], r['power']): r['validation/loss']
    for r in table
    if r['global_step'] == '8'
  }
  assert [*losses] == [
    ('lawa', '0.1', ''), ('lawa', '0.2', ''),
    ('ema', '0.1', ''), ('ema', '0.2', ''),
    ('polynomial', '', '4.0'),
  ]  # fmt: skip
  given = rows_of(tmp_path / 'samples' / 'sweep.csv')
  expected = [r['validation/loss'] for r in given if r['global_step'] == '8']
  assert [*losses.values()][:4] == expected
  assert losses['polynomial', '', '4.0'] not in expected
  # A curve for another T is another one.
  name = 'lawa_horizon_0.1_every_1_budget_20'
  offline = os.path.join(directory, 'offline')
  assert name in os.listdir(offline)
  assert not swept(
    directory, 'click_dlrm', '--horizons', '0.1', '--schemes', 'lawa',
    '--budget', '40', '--batch_norm', 'current',
  )  # fmt: skip
  assert name in os.listdir(offline)
  (row, *_) = rows_of(os.path.join(offline, 'sweep.csv'))
  assert (row['budget'], row['batch_norm']) == ('40', 'current')
  assert 'lawa_horizon_0.1_every_1_budget_40_batch_norm_current' in os.listdir(
    offline
  )


def test_schemes_restrict_a_sweep(small, tmp_path, capsys):
  directory = train(settings(tmp_path, max_global_steps=4))
  assert not swept(
    directory, 'click_dlrm', '--horizons', '0.5', '--schemes', 'ema'
  )
  table = rows_of(os.path.join(directory, 'offline', 'sweep.csv'))
  assert {r['scheme'] for r in table} == {'ema'}
  capsys.readouterr()
  assert swept(directory, 'click_dlrm', '--powers', '4', '--schemes', 'lawa')
  assert 'Invalid schemes=lawa. None has a power.' in capsys.readouterr().err


@pytest.mark.parametrize('every', [1, 2, 3])
@pytest.mark.parametrize('scheme', ['lawa', 'ema'])
def test_sweep_and_average_take_the_same_samples(
  scheme, every, small, tmp_path
):
  directory = train(settings(tmp_path, eval_every_steps=2))
  found = series.find([light_files.path_of(directory, '*')])
  seen = {}

  class Watched(sweep.Sweep):
    def _metrics(self, weights):
      seen.setdefault(len(seen), weights)
      return {}

  watched = Watched(
    build_workload('click_dlrm'), found, directory, str(tmp_path)
  )
  given = Lawa(2) if scheme == 'lawa' else Ema(0.6)
  list(watched.run([sweep.Variant(given, ('window', 2), every)], lambda: None))
  knobs = {'lawa': ('--window', '2'), 'ema': ('--decay', '0.6')}[scheme]
  for place, step in enumerate((2, 4, 6, 8)):
    if step <= every and scheme == 'lawa':
      continue  # fewer than the window
    out = tmp_path / 'avg.safetensors'
    assert not main(
      ['average', '--checkpoints', light_files.path_of(directory, '*'),
       '--scheme', scheme, *knobs, '--at', str(step), '--every', str(every),
       '--output', str(out)]
    )  # fmt: skip
    with sweep.Checkpoint(str(out)) as written:
      for name in written.layout:
        assert torch.equal(written.tensor(name), seen[place][name])


def test_a_sweep_goes_on_where_it_was_stopped(
  small, tmp_path, capsys, monkeypatch
):
  directory = train(settings(tmp_path))
  workload = click_dlrm.Workload
  original, calls = workload.eval_model, []

  def failing(self, *arguments):
    calls.append(1)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return original(self, *arguments)

  monkeypatch.setattr(workload, 'eval_model', failing)
  with pytest.raises(KeyboardInterrupt):
    swept(directory, 'click_dlrm', '--windows', '2,3')
  # Half a line at the end, as of a process that was killed.
  with open(os.path.join(directory, 'offline', sweep.CACHE), 'a') as file:
    file.write('{"key": "ab')
  assert not swept(directory, 'click_dlrm', '--windows', '2,3')
  assert '2 evaluated now' in capsys.readouterr().out
  assert not swept(directory, 'click_dlrm', '--windows', '3,2,2')
  assert '0 evaluated now' in capsys.readouterr().out


def test_recomputed_statistics_are_those_of_training_batches(small, tmp_path):
  directory = train(
    settings(tmp_path, 'glyph_resnet', max_global_steps=2, eval_every_steps=2)
  )
  found = series.find([light_files.path_of(directory, '*')])
  workload = build_workload('glyph_resnet')
  sweeping = sweep.Sweep(
    workload, found, directory, str(tmp_path), recompute=2, batch_size=16
  )
  before = sweep.Running(found, Lawa(2)).at([0, 1])
  sweeping._load(before)
  sweeping._recompute_statistics()
  after = sweeping._model.state_dict()
  means = [name for name in before if name.endswith('running_mean')]
  assert means
  for name in before:
    kind = name.rpartition('.')[2]
    if kind != 'num_batches_tracked':
      changed = not torch.equal(before[name], after[name])
      assert changed == (kind in ('running_mean', 'running_var')), name
  # Of the first layer, the inputs of which no other layer has touched.
  (first, *_) = batch_norm.norms(sweeping._model)
  inputs = []
  hook = first.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
  sweeping._recompute_statistics()
  hook.remove()
  expected = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
  torch.testing.assert_close(first.running_mean, expected)


@pytest.mark.parametrize('how', ['averaged', 'current'])
def test_running_statistics_are_averaged_or_the_last(how, tmp_path):
  directory = train(
    settings(tmp_path, 'glyph_resnet', max_global_steps=2, eval_every_steps=2)
  )
  found = series.find([light_files.path_of(directory, '*')])
  name = 'stem_bn.running_mean'
  samples = []
  for index in range(2):
    with found.open(index) as checkpoint:
      samples.append(checkpoint.tensor(name).clone())
  shown = sweep.Running(found, Lawa(2), how == 'averaged').at([0, 1])[name]
  expected = sum(samples) / 2 if how == 'averaged' else samples[1]
  assert not torch.equal(samples[0], samples[1])
  torch.testing.assert_close(shown, expected)


BAD = {
  'nothing': ((), 'Missing --windows or --horizons or --decays or --powers'),
  'window': (('--windows', '0'), 'Invalid window=0'),
  'every': (('--windows', '2', '--every', '0'), 'Invalid every=0'),
  'budget': (
    ('--windows', '2', '--budget', '9'),
    'Invalid budget. It has no effect without horizons.',
  ),
  'no norm': (
    ('--windows', '2', '--recompute_batch_norm', '3'),
    'click_dlrm has no such layers',
  ),
  'negative': (
    ('--windows', '2', '--recompute_batch_norm', '-3'),
    'Invalid recompute_batch_norm=-3. Must be in [0, inf).',
  ),
  'checkpoints': (
    ('--windows', '2', '--checkpoints', 'nowhere_*'),
    'No checkpoint matches',
  ),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_sweeps_end_in_one_line(case, small, tmp_path, capsys):
  directory = train(settings(tmp_path, max_global_steps=4))
  capsys.readouterr()
  arguments, message = BAD[case]
  assert swept(directory, 'click_dlrm', *arguments)
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1
  assert not os.path.exists(os.path.join(directory, 'offline'))


def test_checkpoints_of_another_model_are_refused(small, tmp_path, capsys):
  directory = train(settings(tmp_path, max_global_steps=4))
  assert swept(directory, 'glyph_resnet', '--windows', '2')
  assert 'of another model than glyph_resnet' in capsys.readouterr().err


def test_a_spoilt_checkpoint_or_a_full_disk_end_in_one_line(
  small, tmp_path, capsys, monkeypatch
):
  directory = train(settings(tmp_path, max_global_steps=4))
  capsys.readouterr()

  def full(self):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(logs.Table, 'rewrite', full)
    assert swept(directory, 'click_dlrm', '--windows', '2')
  error = capsys.readouterr().err
  assert (
    error
    == f'error: Cannot write {directory}/offline: No space left on device.\n'
  )
  path = light_files.path_of(directory, 3)
  with open(path, 'r+b') as file:
    file.truncate(200)
  assert swept(directory, 'click_dlrm', '--windows', '2,3')
  error = capsys.readouterr().err
  assert f'Cannot read {path}: it does not match its checksum' in error
  assert error.count('\n') == 1


def test_a_run_without_evaluations_is_refused(tmp_path):
  with pytest.raises(InputError, match='Cannot read the evaluations'):
    sweep.evaluations(str(tmp_path))
  (tmp_path / 'eval_measurements.csv').write_text('global_step\n')
  with pytest.raises(InputError, match='No evaluation'):
    sweep.evaluations(str(tmp_path))


def test_evaluations_are_the_whole_lines(tmp_path):
  (tmp_path / 'eval_measurements.csv').write_text(
    'global_step,validation/loss\n5,0.5\n6,0.4,9,9\n7\n8,0.3\n9,0.'
  )
  found = sweep.evaluations(str(tmp_path))
  assert [row['global_step'] for row in found] == ['5', '8']
  assert {*found[0]} == {'global_step', 'validation/loss'}


def test_cache_lines_are_json(small, tmp_path):
  directory = train(settings(tmp_path, max_global_steps=4))
  swept(directory, 'click_dlrm', '--windows', '2')
  path = os.path.join(directory, 'offline', sweep.CACHE)
  with open(path, encoding='utf-8') as file:
    (entry,) = map(json.loads, file)
  assert set(entry) == {'key', 'metrics'}
