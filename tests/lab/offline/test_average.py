"""Averages of files: equal to online ones, and streamed."""

import math
import re
import resource
import sys

import pytest
import torch
from offline_files import average, read, states, write
from references import explicit_average
from torch import nn

from lab.core import light_files
from lab.core.errors import InputError
from lab.offline import chunks, series, writers
from lab.run import light_checkpoints
from weightavg import AveragingConfig
from weightavg.pytorch import Averager
from weightavg.schemes import Ema, Lawa, Polynomial

SCHEMES = {
  'lawa': (('--window', 3), Lawa(3)),
  'ema': (('--decay', 0.7), Ema(0.7)),
  'polynomial': (('--power', 2.5), Polynomial(2.5)),
}


@pytest.mark.parametrize('every', [1, 2])
@pytest.mark.parametrize('name', SCHEMES)
def test_equals_the_explicit_weighted_sum(name, every, tmp_path):
  samples = states(6, torch.float64)
  out = tmp_path / 'avg.safetensors'
  arguments, scheme = SCHEMES[name]
  assert not average(
    write(tmp_path, samples), '--scheme', name, *arguments, '--every', every,
    '--output', out,
  )  # fmt: skip
  used = samples[(6 - 1) % every :: every][:6]
  found, recipe = read(out)
  names = ['layer.weight', 'layer.bias']
  weights = scheme.weights(len(used))
  expected = explicit_average([[s[n] for n in names] for s in used], weights)
  for key, value in zip(names, expected, strict=True):
    # Sums of six terms of size one in float64.
    torch.testing.assert_close(found[key], value, rtol=0, atol=1e-14)
  listed = {i['step']: i['weight'] for i in recipe['inputs']}
  assert sum(listed.values()) == pytest.approx(1.0)
  assert max(listed) == 60


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('name', SCHEMES)
def test_offline_equals_online_bit_for_bit(name, dtype, tmp_path):
  # Also in float32: the operations are the same ones. Chunks and vector tails
  # fall differently, which must not show either.
  model = nn.Sequential(nn.Linear(97, 31), nn.BatchNorm1d(31)).to(dtype)
  arguments, _ = SCHEMES[name]
  knobs = {
    'lawa': {'lawa_window': 3},
    'ema': {'ema_decay': 0.7},
    'polynomial': {'averaging_power': 2.5},
  }[name]
  config = AveragingConfig.from_point(
    averaging_scheme=name, averaging_every_steps=2, **knobs
  )
  averager = Averager.from_config(model, config, budget=12)
  optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
  for step in range(1, 13):
    loss = model(torch.randn(8, 97, dtype=dtype)).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    averager.update()
    if step % 2 == 0:
      light_checkpoints.save(model, str(tmp_path), step)
  out = tmp_path / 'avg.safetensors'
  assert not average(
    light_files.path_of(str(tmp_path), '*'), '--scheme', name, *arguments,
    '--output', out,
  )  # fmt: skip
  found, _ = read(out)
  raw = {k: v.clone() for k, v in model.state_dict().items()}
  with averager.evaluating():
    online = {k: v.clone() for k, v in model.state_dict().items()}
  assert online.keys() == found.keys()
  for key, value in online.items():
    assert torch.equal(found[key], value), key
  assert not torch.equal(online['0.weight'], raw['0.weight'])


def test_integers_come_from_the_last_and_running_statistics_if_asked(tmp_path):
  pattern, out = write(tmp_path, states(4)), tmp_path / 'a.safetensors'
  average(pattern, '--scheme', 'lawa', '--window', 4, '--output', out)
  found, _ = read(out)
  assert found['norm.num_batches_tracked'].item() == 4
  assert found['norm.running_mean'].tolist() == [2.5] * 3
  average(
    pattern, '--scheme', 'lawa', '--window', 4, '--batch_norm', 'current',
    '--output', out,
  )  # fmt: skip
  assert read(out)[0]['norm.running_mean'].tolist() == [4.0] * 3


def test_dtypes_of_sums_and_of_the_output(tmp_path):
  # In float32 2^24 + 1 is 2^24; in float64 it is not.
  samples = [{'w': torch.tensor([2.0**24])}, {'w': torch.tensor([1.0])}]
  samples.append({'w': torch.tensor([1.0])})
  pattern = write(tmp_path, samples)
  arguments = (pattern, '--scheme', 'lawa', '--window', 3, '--output')
  out = tmp_path / 'a.safetensors'
  average(*arguments, out)
  assert read(out)[0]['w'].item() == torch.tensor(2.0**24 / 3).item()
  average(*arguments, out, '--sums', 'float64', '--dtype', 'float64')
  assert read(out)[0]['w'].item() == (2.0**24 + 2) / 3
  average(*arguments, out, '--dtype', 'bfloat16')
  assert read(out)[0]['w'].dtype == torch.bfloat16


def test_half_precision_is_summed_in_float32(tmp_path):
  samples = [{'w': torch.tensor([x], dtype=torch.bfloat16)} for x in (256, 1)]
  pattern, out = write(tmp_path, samples), tmp_path / 'a.safetensors'
  average(
    pattern, '--scheme', 'lawa', '--window', 2, '--dtype', 'float32',
    '--output', out,
  )  # fmt: skip
  assert read(out)[0]['w'].item() == 128.5


def test_tied_tensors_stay_tied(tmp_path):
  for step in (1, 2):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    torch.save(model.state_dict(), tmp_path / f'tied_{step}')
    light_checkpoints.save(model, str(tmp_path), step)
  for pattern in (tmp_path / 'tied_*', light_files.path_of(str(tmp_path), '*')):
    out = tmp_path / 'avg.pt'
    average(str(pattern), '--scheme', 'lawa', '--window', 2, '--output', out)
    state = torch.load(out, weights_only=True)['state_dict']
    assert state['0.weight'].data_ptr() == state['1.weight'].data_ptr()
    model.load_state_dict(state)
  out = tmp_path / 'avg.safetensors'
  average(str(pattern), '--scheme', 'lawa', '--window', 2, '--output', out)
  from safetensors.torch import load_model

  load_model(model, str(out))
  assert torch.equal(model[0].weight, state['0.weight'])


@pytest.mark.parametrize('ending', ['safetensors', 'pt'])
def test_many_outputs_share_one_pass_and_equal_single_ones(
  ending, tmp_path, monkeypatch
):
  pattern = write(tmp_path, states(6))
  template = f'avg_{{window}}_{{at}}.{ending}'
  opened = []
  original = series.Series.open

  def counting(self, index):
    opened.append(index)
    return original(self, index)

  monkeypatch.setattr(series.Series, 'open', counting)
  arguments = ['--scheme', 'lawa', '--no_hashes', '--output']
  assert not average(
    pattern, *arguments, tmp_path / template, '--window', '2,3', '--at', '40,60'
  )
  groups = 4
  # Twice to look at it, and once for each group of the model that is summed.
  assert len(opened) <= 6 * (2 + groups) + 1
  for window in (2, 3):
    for at in (40, 60):
      alone = tmp_path / f'alone.{ending}'
      average(pattern, *arguments, alone, '--window', window, '--at', at)
      together = tmp_path / template.format(window=window, at=at)
      assert together.read_bytes() == alone.read_bytes() or ending == 'pt'
      if ending == 'pt':
        one, two = (
          torch.load(p, weights_only=True)['state_dict']
          for p in (together, alone)
        )
        assert all(torch.equal(one[k], two[k]) for k in two)


def test_outputs_are_not_open_all_at_once(tmp_path, monkeypatch):
  """The number of open files is limited."""
  pattern = write(tmp_path, states(4))
  opened, most = [], []

  def opening(path, mode='r', **kwargs):
    opened.append(open(path, mode, **kwargs))  # noqa: SIM115
    most.append(sum(not file.closed for file in opened))
    return opened[-1]

  monkeypatch.setattr(writers, 'open', opening, raising=False)
  assert not average(
    pattern, '--scheme', 'lawa', '--window', '1,2,3,4',
    '--output', tmp_path / 'avg_{window}.safetensors',
  )  # fmt: skip
  assert max(most) == 1
  assert len(list(tmp_path.glob('avg_*'))) == 4


def test_the_bar_is_full_at_the_end(tmp_path, monkeypatch):
  pattern = write(tmp_path, states(4))
  bars = []

  class Bar:
    def __init__(self, total, **kwargs):
      self.total, self.count = total, 0
      bars.append(self)

    def update(self):
      self.count += 1

    def close(self):
      pass

  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  monkeypatch.setattr('tqdm.tqdm', Bar)
  assert not average(
    pattern, '--scheme', 'lawa', '--window', '2,3',
    '--output', tmp_path / 'avg_{window}.pt',
  )  # fmt: skip
  # Three inputs, for each group of the model that is summed.
  assert [(bar.count, bar.count % 3) for bar in bars] == [(bars[0].total, 0)]
  assert bars[0].total > 3


def test_every_value_is_read_once(tmp_path, monkeypatch):
  pattern = write(tmp_path, states(3))
  seen = []
  original = chunks.Average.add

  def counting(self, values):
    seen.append(values.numel())
    original(self, values)

  monkeypatch.setattr(chunks.Average, 'add', counting)
  average(
    pattern, '--scheme', 'ema', '--decay', 0.5, '--sums', 'float64',
    '--output', tmp_path / 'a.pt',
  )  # fmt: skip
  assert sum(seen) == 3 * (7 * 5 + 5 + 3)


@pytest.mark.parametrize('size', [1, 7, 1 << 18])
def test_chunks_of_any_size_give_the_same_bits(size, tmp_path, monkeypatch):
  samples = states(5)
  for i, state in enumerate(samples, 1):
    writers.save(str(tmp_path / f's_{i}.safetensors'), state.items(), {})
  monkeypatch.setattr(chunks, 'CHUNK', size)
  assert not average(
    str(tmp_path / 's_*'), '--scheme', 'lawa', '--window', '2,5',
    '--output', tmp_path / 'avg_{window}.safetensors',
  )  # fmt: skip
  for window in (2, 5):
    found, _ = read(tmp_path / f'avg_{window}.safetensors')
    for name in ('layer.weight', 'layer.bias'):
      total = samples[-window][name].clone()
      for state in samples[len(samples) - window + 1 :]:
        total += state[name]
      assert torch.equal(found[name], total / window)


def test_a_light_checkpoint_that_fails_leaves_nothing(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
  try:
    with pytest.raises(InputError, match='File too large'):
      light_checkpoints.save(nn.Linear(64, 64), str(tmp_path), 3)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert list((tmp_path / light_files.FOLDER).iterdir()) == []


@pytest.mark.parametrize('outputs', [1, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_sums_never_take_more_than_the_model(outputs, dtype):
  layout = {
    'embedding': series.Spec((1000, 90), torch.float32),
    'empty': series.Spec((0, 3), torch.float32),
    'scalar': series.Spec((), torch.int64),
    'head': series.Spec((333,), torch.float32),
  }
  model = 4 * (1000 * 90 + 333) + 8
  covered = {name: 0 for name in layout}
  for group in chunks.groups(layout, set(layout), outputs, dtype):
    elements = sum(p.end - p.begin for p in group)
    assert elements * dtype.itemsize * outputs <= model
    for piece in group:
      assert piece.begin == covered[piece.name]
      covered[piece.name] = piece.end
  assert covered == {'embedding': 90000, 'empty': 0, 'scalar': 1, 'head': 333}


def test_recipes_name_inputs_by_content_whatever_holds_them(tmp_path):
  samples = states(2)
  write(tmp_path, samples)
  for i, state in enumerate(samples, 1):
    writers.save(str(tmp_path / f'c_{10 * i}.safetensors'), state.items(), {})
  digests = []
  for pattern in ('checkpoint_*', 'c_*.safetensors'):
    out = tmp_path / 'avg.safetensors'
    average(
      str(tmp_path / pattern), '--scheme', 'lawa', '--window', 2,
      '--output', out,
    )  # fmt: skip
    digests.append([i['sha256'] for i in read(out)[1]['inputs']])
  assert digests[0] == digests[1]
  assert digests[0][0] != digests[0][1]
  assert all(re.fullmatch('[0-9a-f]{64}', d) for d in digests[0])


def test_horizons_are_fractions_of_the_budget(tmp_path):
  pattern, out = write(tmp_path, states(6)), tmp_path / 'a.safetensors'
  arguments = (pattern, '--scheme', 'lawa', '--horizon', 0.5, '--output', out)
  average(*arguments)  # of 60 steps, with a sample every 10
  assert read(out)[1]['window'] == 3
  average(*arguments, '--budget', 100)
  assert read(out)[1]['window'] == 5
  average(*arguments, '--budget', 100, '--every', 2)
  assert read(out)[1]['window'] == 2


def test_an_output_has_the_dtypes_of_its_own_last_input(tmp_path):
  dtypes = [torch.float64, torch.float32, torch.bfloat16]
  pattern = write(
    tmp_path,
    [{'w': torch.ones(2, dtype=d), 'n': torch.tensor(1, dtype=i)} for d, i in
     zip(dtypes, [torch.int64, torch.int32, torch.bool], strict=True)],
  )  # fmt: skip
  average(
    pattern, '--scheme', 'lawa', '--window', 1, '--at', '10,20,30',
    '--output', tmp_path / 'a_{at}.safetensors',
  )  # fmt: skip
  found = [read(tmp_path / f'a_{at}.safetensors')[0] for at in (10, 20, 30)]
  assert [f['w'].dtype for f in found] == dtypes
  assert [f['n'].dtype for f in found] == [
    torch.int64,
    torch.int32,
    torch.bool,
  ]


LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize('scheme', ['lawa', 'ema'])
@pytest.mark.parametrize('sums', ['float32', 'float64'])
@pytest.mark.parametrize('value', [-math.inf, LOWEST])
def test_masks_stay_as_they_are(value, sums, scheme, tmp_path):
  samples = states(3)
  mask = torch.full((4, 4), value).triu(1)
  for state in samples:
    state['mask'] = mask
  out = tmp_path / 'out.safetensors'
  length = ('--window', 3) if scheme == 'lawa' else ('--decay', 0.5)
  assert not average(
    write(tmp_path, samples), '--scheme', scheme, *length, '--sums', sums,
    '--output', out,
  )  # fmt: skip
  assert torch.equal(read(out)[0]['mask'], mask)


@pytest.mark.parametrize(
  'values', [(-math.inf, -math.inf, 1.0), (math.nan, math.nan, math.nan)]
)
def test_what_is_no_mask_is_refused(values, tmp_path, capsys):
  samples = states(3)
  for state, value in zip(samples, values, strict=True):
    state['mask'] = torch.full((4, 4), value)
  assert average(
    write(tmp_path, samples), '--scheme', 'lawa', '--window', 3,
    '--output', tmp_path / 'out.safetensors',
  )  # fmt: skip
  assert "'mask' holds a NaN or an infinity" in capsys.readouterr().err


def test_tensors_without_elements_are_written_beside_other_dtypes(tmp_path):
  samples = [state | {'norm.empty': torch.zeros(0, 3)} for state in states(2)]
  out = tmp_path / 'out.pt'
  assert not average(
    write(tmp_path, samples), '--scheme', 'lawa', '--window', 2,
    '--output', out,
  )  # fmt: skip
  found = torch.load(out)['state_dict']
  assert found['norm.empty'].shape == (0, 3)
  assert found.keys() == samples[0].keys()
