"""Twins of local workloads in JAX: the PyTorch workload in other words."""

import copy

import numpy as np
import pytest
import torch
from jax_support import import_jax

from lab import workloads
from weightavg import spec

jax, jnp = import_jax('jax', 'jax.numpy')
twins, weights = import_jax('lab.workloads.jax', 'lab.workloads.jax.weights')

RNG = np.array([3, 4])
TRAIN, EVAL = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL


def pair(name):
  """Both workloads and their models, from one seed."""
  original, twin = workloads.build_workload(name), twins.build_workload(name)
  model, _ = original.init_model_fn(RNG)
  return original, model, twin, *twin.init_model_fn(RNG)


def batches(original, twin, split='train', count=1):
  queues = [
    w._build_input_queue(RNG, split, '', w.batch_size) for w in (original, twin)
  ]
  return [tuple(map(next, queues)) for _ in range(count)]


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name == 'glyph_resnet'))
    for name in twins.WORKLOADS
  ],
)
def test_same_data_parameters_and_logits(name):
  original, model, twin, params, state = pair(name)
  ((batch, arrays),) = batches(original, twin)
  for key, value in batch.items():
    np.testing.assert_array_equal(arrays[key], value)
  sizes = [p.numel() for p in model.parameters()]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(sizes)
  # Weights that are not those of initialisation: zeros would hide a mistake.
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.1 * torch.randn_like(p))
  collections = jax.tree.map(jnp.asarray, weights.to_flax(model))
  params = collections['params']
  if state is not None:
    state = {'batch_stats': collections['batch_stats']}
  # Evaluation first: training moves the statistics, each framework its own way.
  for mode in (EVAL, TRAIN):
    expected, _ = original.model_fn(model, batch, None, mode, RNG, True)
    shown, state = twin.model_fn(params, arrays, state, mode, RNG, True)
    np.testing.assert_allclose(shown, expected.detach(), rtol=1e-4, atol=2e-5)
    for smoothing in (0.0, 0.1):
      losses = [
        w.loss_fn(b['targets'], logits, None, smoothing)
        for w, b, logits in (
          (original, batch, expected),
          (twin, arrays, shown),
        )
      ]
      for key in ('summed', 'n_valid_examples', 'per_example'):
        np.testing.assert_allclose(
          losses[1][key], losses[0][key].detach(), rtol=1e-4
        )


@pytest.mark.parametrize('name', twins.WORKLOADS)
def test_weights_convert_back_bit_for_bit(name):
  _, model, _, _, _ = pair(name)
  other = copy.deepcopy(model)
  with torch.no_grad():
    for tensor in (*model.parameters(), *model.buffers()):
      if tensor.is_floating_point():
        tensor.copy_(torch.randn_like(tensor))
  weights.load_flax(other, weights.to_flax(model))
  for a, b in zip(
    model.state_dict().values(), other.state_dict().values(), strict=True
  ):
    assert torch.equal(a, b)


def test_running_statistics_move_as_torchs_but_for_bessels_correction():
  original, model, twin, params, state = pair('glyph_resnet')
  ((batch, arrays),) = batches(original, twin)
  original.model_fn(model, batch, None, TRAIN, RNG, True)
  _, state = twin.model_fn(params, arrays, state, TRAIN, RNG, True)
  statistics = state['batch_stats']['stem_bn']
  norm = model.stem_bn
  np.testing.assert_allclose(
    statistics['mean'], norm.running_mean, rtol=1e-4, atol=1e-6
  )
  # 32 images of 8 x 8 positions: torch's variance has n / (n - 1).
  n = 32 * 64
  torchs = (norm.running_var.numpy() - 0.9) * (n - 1) / n + 0.9
  np.testing.assert_allclose(statistics['var'], torchs, rtol=1e-5)


@pytest.mark.parametrize('name', twins.WORKLOADS)
def test_same_metrics_of_a_split(name, monkeypatch):
  original, model, twin, params, state = pair(name)
  args = ('test', 2 * original.batch_size, original.batch_size)
  expected = original._eval_model_on_split(*args, model, None, RNG, '')
  shown = twin._eval_model_on_split(*args, params, state, RNG, '')
  assert shown.keys() == expected.keys()
  for key, value in expected.items():
    assert shown[key] == pytest.approx(value, rel=1e-4)


def test_a_workload_without_a_twin():
  with pytest.raises(
    ValueError, match="Must be one of glyph_resnet, stdlib_lm with framework='j"
  ):
    twins.build_workload('click_dlrm')
