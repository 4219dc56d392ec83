"""Checkpoints of every make are read alike, and steps from their names."""

import json
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from lab.core.errors import InputError
from lab.offline import series
from lab.offline.digests import Digests
from lab.offline.readers import Checkpoint
from lab.run import checkpoints
from lab.run.run_state import RunState
from weightavg import AveragingConfig
from weightavg.pytorch import Averager


def state():
  torch.manual_seed(1)
  return {'a.weight': torch.randn(4, 3), 'a.bias': torch.randn(4)}


def plain(folder, content):
  torch.save(content, folder / 'checkpoint_5')
  return folder / 'checkpoint_5'


def nested(folder, content):
  torch.save({'epoch': 3, 'state_dict': content}, folder / 'c_5.pt')
  return folder / 'c_5.pt'


def prefixed(folder, content):
  content = {f'module._orig_mod.{k}': v for k, v in content.items()}
  return plain(folder, {'model': content, 'optimizer': {'x': torch.ones(2)}})


def legacy(folder, content):
  path = folder / 'checkpoint_5'
  torch.save(content, path, _use_new_zipfile_serialization=False)
  return path


def single(folder, content):
  save_file(content, folder / 'step_5.safetensors')
  return folder / 'step_5.safetensors'


def sharded(folder, content):
  """As Hugging Face writes them."""
  folder = folder / 'checkpoint-5'
  folder.mkdir()
  index = {}
  for i, (name, tensor) in enumerate(content.items(), 1):
    shard = f'model-0000{i}-of-00002.safetensors'
    save_file({name: tensor}, folder / shard)
    index[name] = shard
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'metadata': {}, 'weight_map': index})
  )
  return folder


def index_of_shards(folder, content):
  return sharded(folder, content) / 'model.safetensors.index.json'


def directory(folder, content):
  folder = folder / 'checkpoint-5'
  folder.mkdir()
  save_file(content, folder / 'model.safetensors')
  return folder


def directory_of_torch(folder, content):
  folder = folder / 'checkpoint-5'
  folder.mkdir()
  torch.save(content, folder / 'pytorch_model.bin')
  return folder


MAKERS = [
  plain,
  nested,
  prefixed,
  legacy,
  single,
  sharded,
  index_of_shards,
  directory,
  directory_of_torch,
]


def digest(checkpoint):
  """Digest of a whole checkpoint."""
  digests = Digests(wanted=True)
  for name, spec in checkpoint.layout.items():
    values = checkpoint.tensor(name).reshape(-1)
    digests.add(0, name, spec, 0, values)
  return digests.of(0)


@pytest.mark.parametrize('make', MAKERS, ids=lambda m: m.__name__)
def test_every_format_gives_the_same_tensors_digest_and_step(make, tmp_path):
  expected = state()
  path = make(tmp_path, expected)
  with Checkpoint(str(path)) as checkpoint:
    assert list(checkpoint.layout) == sorted(expected)
    for name, tensor in expected.items():
      assert torch.equal(checkpoint.tensor(name), tensor)
      assert checkpoint.layout[name] == (tuple(tensor.shape), tensor.dtype)
    found = digest(checkpoint)
  with Checkpoint(str(plain(tmp_path, expected))) as reference:
    assert digest(reference) == found
  assert series.step_of(str(path)) == 5


def test_a_module_prefix_of_some_names_only_is_a_name(tmp_path):
  content = {'module.w': torch.ones(2), 'head.w': torch.ones(3)}
  with Checkpoint(str(plain(tmp_path, content))) as checkpoint:
    assert set(checkpoint.layout) == {'module.w', 'head.w'}


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.'])
def test_shards_of_a_wrapped_model_lose_its_prefix(prefix, tmp_path):
  content = {prefix + name: tensor for name, tensor in state().items()}
  with Checkpoint(str(sharded(tmp_path, content))) as checkpoint:
    assert list(checkpoint.layout) == sorted(state())


def test_a_tensor_beside_a_state_dict_is_no_state_dict(tmp_path):
  path = tmp_path / 'c.pt'
  torch.save({'step': torch.tensor(3), 'params': {'w': torch.ones(2)}}, path)
  with pytest.raises(InputError, match='Name it by --key; there are params, s'):
    Checkpoint(str(path))
  with Checkpoint(str(path), key='params') as checkpoint:
    assert list(checkpoint.layout) == ['w']


def test_a_state_dict_may_hold_another_that_is_no_model(tmp_path):
  path = str(tmp_path / 'c.pt')
  torch.save({'w': torch.ones(2), 'sampler': {'rng': torch.tensor([1])}}, path)
  with Checkpoint(path) as checkpoint:
    assert list(checkpoint.layout) == ['w']
  torch.save({'w': torch.ones(2), 'ema': {'w': torch.zeros(2)}}, path)
  with pytest.raises(InputError, match='Name it by --key; there are ema, w'):
    Checkpoint(path)
  for key, value in {'.': 1.0, 'ema': 0.0}.items():
    with Checkpoint(path, key=key) as checkpoint:
      assert checkpoint.tensor('w').tolist() == [value] * 2


@pytest.mark.parametrize('ending', ['pt', 'safetensors'])
def test_floats_of_8_bits_are_refused(ending, tmp_path):
  path = str(tmp_path / f'c.{ending}')
  state = {'w': torch.ones(2).to(torch.float8_e4m3fn)}
  save = torch.save if ending == 'pt' else save_file
  save(state, path)
  with pytest.raises(InputError, match=r"'w' is torch.float8_e4m3fn\. W"):
    Checkpoint(path)


def test_a_key_names_the_state_dict(tmp_path):
  content = {'ema': {'shadow': {'w': torch.ones(2)}}, 'model': state()}
  path = str(plain(tmp_path, content))
  with Checkpoint(path, key='ema.shadow') as checkpoint:
    assert list(checkpoint.layout) == ['w']
  with pytest.raises(InputError, match='no state dict at'):
    Checkpoint(path, key='ema.missing')


def test_counters_that_are_no_tensors_are_kept(tmp_path):
  path = plain(tmp_path, state() | {'step': 17})
  with Checkpoint(str(path)) as checkpoint:
    assert checkpoint.tensor('step').item() == 17
    assert not checkpoint.layout['step'].dtype.is_floating_point


@pytest.mark.parametrize('kind', ['float64', 'float32', 'int64', 'bool_'])
def test_metrics_that_are_numpy_scalars_do_not_make_a_file_unreadable(
  kind, tmp_path
):
  metrics = {'validation/loss': getattr(np, kind)(1)}
  content = {'model_params': state(), 'eval_results': ((5, metrics),)}
  with Checkpoint(str(plain(tmp_path, content))) as checkpoint:
    assert list(checkpoint.layout) == sorted(state())


def test_names_of_tied_tensors_are_found_in_both_formats(tmp_path):
  model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
  model[1].weight = model[0].weight
  save_model(model, str(tmp_path / 'a_1.safetensors'))
  torch.save(model.state_dict(), tmp_path / 'a_2.pt')
  ties = []
  for name in ('a_1.safetensors', 'a_2.pt'):
    with Checkpoint(str(tmp_path / name)) as checkpoint:
      ties.append(checkpoint.ties)
      assert len(checkpoint.layout) == 3
  assert ties[0] == ties[1] == {'1.weight': '0.weight'}


@pytest.mark.parametrize('evaluated', [False, True])
def test_our_checkpoints_give_raw_weights_unless_asked(evaluated, tmp_path):
  # A checkpoint is written while the model holds the average.
  model = nn.Linear(2, 2)
  config = AveragingConfig.from_point(
    averaging_scheme='lawa', averaging_every_steps=1, lawa_window=2
  )
  averager = Averager.from_config(model, config, budget=2)
  for value in (1.0, 3.0):
    model.weight.data.fill_(value)
    averager.update()
  averager.swap_in()
  run = RunState({'averager': averager}, model, None, global_step=2)
  path = checkpoints.save(run, str(tmp_path))
  with Checkpoint(path, evaluated=evaluated) as checkpoint:
    expected = 2.0 if evaluated else 3.0
    assert checkpoint.tensor('weight').unique().tolist() == [expected]


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'truncated'),
    (b'no checkpoint at all', 'truncated'),
    (b'PK\x03\x04' + bytes(50), 'truncated'),
  ],
)
@pytest.mark.parametrize('name', ['c_1', 'c_1.safetensors', 'c_1.index.json'])
def test_garbage_ends_in_one_line_that_names_the_file(
  content, message, name, tmp_path
):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=message) as error:
    Checkpoint(str(tmp_path / name))
  assert name in str(error.value)
  assert '\n' not in str(error.value)


def test_a_missing_shard_is_named(tmp_path):
  folder = sharded(tmp_path, state())
  (folder / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(InputError, match='checkpoint-5'):
    Checkpoint(str(folder))


def test_an_index_whose_shards_lack_a_tensor_is_refused(tmp_path):
  folder = sharded(tmp_path, state())
  path = folder / 'model.safetensors.index.json'
  index = json.loads(path.read_text())
  index['weight_map']['gone'] = 'model-00001-of-00002.safetensors'
  path.write_text(json.dumps(index))
  with pytest.raises(InputError, match="lack 'gone'"):
    Checkpoint(str(folder))


@pytest.mark.parametrize(
  ('path', 'step'),
  [
    ('a/checkpoint_300', 300),
    ('a/v2_step-000040.safetensors', 40),
    ('a/step-20/model.safetensors', 20),
    ('run7/checkpoint-9/model.safetensors.index.json', 9),
    ('epoch_3.pt', 3),
    ('epoch=00-val_loss=0.92.ckpt', 0),
    ('step_200-lr_1.5e-05.pt', 200),
    ('a/step-20-loss=1e-05/model.safetensors', 20),
  ],
)
def test_steps_are_the_last_number_of_a_name(path, step):
  assert series.step_of(path) == step


@pytest.mark.parametrize(
  ('path', 'pattern', 'message'),
  [
    ('final.pt', None, 'Cannot read a step'),
    ('c_1/model-00001-of-00002.safetensors', None, 'it is a shard'),
    ('c_1', 'step_([0-9]+)', 'by the pattern'),
    ('c_1', 'c_', 'by the pattern'),
  ],
)
def test_names_without_a_step_are_refused(path, pattern, message):
  with pytest.raises(InputError, match=message):
    series.step_of(path, pattern)


def test_a_pattern_picks_the_step_out_of_other_numbers():
  assert series.step_of('s_100_loss_0.3.pt', r's_(\d+)_') == 100


def test_a_path_with_brackets_is_found_by_its_name(tmp_path):
  folder = tmp_path / 'run[1]'
  folder.mkdir()
  for step in (1, 2):
    (folder / f'checkpoint_{step}').touch()
  paths = [str(folder / f'checkpoint_{step}') for step in (1, 2)]
  assert series.matching(paths) == paths
  assert series.matching([str(tmp_path / 'run[[]1]' / '*')]) == paths


def test_steps_are_sorted_as_numbers_and_must_differ(tmp_path):
  for name in ('c_9', 'c_10', 'c_100'):
    (tmp_path / name).touch()
  found = series.find([str(tmp_path / 'c_*')])
  assert found.steps == (9, 10, 100)
  assert pathlib.Path(found.paths[0]).name == 'c_9'
  (tmp_path / 'c_09').touch()
  with pytest.raises(InputError, match=r'Two checkpoints of step 9.*step_p'):
    series.find([str(tmp_path / 'c_*')])


@pytest.mark.parametrize(
  ('names', 'steps'),
  [
    (('step_100_loss_92', 'step_200_loss_81'), None),
    (('epoch=1-step=200', 'epoch=0-step=100'), (100, 200)),
    (('2024-01-31-9', '2024-02-01-10'), (9, 10)),
    (('a1-9', 'a-10'), (9, 10)),
  ],
)
def test_numbers_that_disagree_on_the_order_are_refused(names, steps, tmp_path):
  for name in names:
    (tmp_path / f'{name}.pt').touch()
  pattern = [str(tmp_path / '*.pt')]
  if steps is not None:
    assert series.find(pattern).steps == steps
    return
  with pytest.raises(InputError, match='Cannot tell which is the older'):
    series.find(pattern)
  found = series.find(pattern, step_pattern='step_([0-9]+)')
  assert found.steps == (100, 200)
