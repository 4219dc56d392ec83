"""The workloads keep the benchmark's contract: models, losses, evaluations."""

import json

import gloo
import numpy as np
import pytest
import torch
import workload_ranks
from workload_runs import (
  NAMES,
  RNG,
  built,
  each_workload,
  evaluate,
  forward,
  queue_of,
)

from lab import workloads
from lab.workloads import (
  denoise_unet,
)
from weightavg import spec
from weightavg.optimizers import published_batch_size
from weightavg.workloads import batch_size_of

TRAIN, EVAL = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL


def test_unknown_workload_names_those_allowed():
  with pytest.raises(ValueError, match=r"workload='mnist'.*click_dlrm, den"):
    workloads.build_workload('mnist')


def test_every_module_of_a_workload_is_found():
  assert NAMES == ['click_dlrm', 'denoise_unet', 'glyph_resnet', 'stdlib_lm']


@pytest.mark.parametrize('name', NAMES)
def test_regularizers_are_those_with_an_effect(name):
  workload = built(name)
  model, _ = workload.init_model_fn(RNG)
  batch = next(queue_of(workload))

  def loss(dropout=0.0, smoothing=0.0):
    torch.manual_seed(0)
    logits = forward(workload, model, batch, update=False, dropout=dropout)
    return workload.loss_fn(
      batch['targets'], logits, label_smoothing=smoothing
    )['summed'].item()

  effects = {
    'dropout_rate': loss(dropout=0.5) != loss(),
    'label_smoothing': loss(smoothing=0.5) != loss(),
  }
  known = workload.regularizers
  assert [key for key, changed in effects.items() if changed] == list(known)


@each_workload
def test_workload_has_the_contracts_members(name):
  workload = built(name)
  assert isinstance(workload, spec.Workload)
  assert workload.name == name
  assert isinstance(workload.loss_type, spec.LossType)
  assert workload.eval_every_steps == round(workload.step_hint / 50)
  assert batch_size_of(workload, published_batch_size) == workload.batch_size
  for member in (
    'step_hint',
    'num_train_examples',
    'num_eval_train_examples',
    'num_validation_examples',
    'num_test_examples',
    'eval_batch_size',
    'max_allowed_runtime_sec',
    'eval_period_time_sec',
  ):
    value = getattr(workload, member)
    assert isinstance(value, int), member
    assert value > 0, member
  assert workload.train_mean == 0.0
  assert workload.train_stddev == 1.0


@each_workload
def test_parameters_are_described_and_a_function_of_the_seed(name):
  workload = workloads.build_workload(name)
  with pytest.raises(ValueError, match='init_model_fn'):
    _ = workload.param_shapes
  model, _ = workload.init_model_fn(RNG)
  again, _ = workload.init_model_fn(RNG)
  other, _ = workload.init_model_fn(RNG + 1)
  weights = dict(model.named_parameters())
  assert workload.param_shapes.keys() == weights.keys()
  assert workload.model_params_types.keys() == weights.keys()
  for key, weight in weights.items():
    assert workload.param_shapes[key].shape_tuple == weight.shape
    assert torch.equal(weight, again.get_parameter(key))
  assert any(
    not torch.equal(weight, other.get_parameter(key))
    for key, weight in weights.items()
  )
  outputs = [key for key in weights if workload.is_output_params(key)]
  assert outputs == ['head.weight', 'head.bias']
  assert workload.is_output_params('module.head.weight')


@pytest.mark.parametrize(
  ('name', 'key', 'kind'),
  [
    ('stdlib_lm', 'token_embedding.weight', 'EMBEDDING'),
    ('stdlib_lm', 'final_norm.weight', 'LAYER_NORM_SCALE'),
    ('stdlib_lm', 'final_norm.bias', 'LAYER_NORM_BIAS'),
    ('glyph_resnet', 'stem.weight', 'CONV_WEIGHT'),
    ('glyph_resnet', 'block2.skip.1.weight', 'BATCH_NORM_SCALE'),
    ('glyph_resnet', 'stem_bn.bias', 'BATCH_NORM_BIAS'),
    ('click_dlrm', 'hidden1.weight', 'WEIGHT'),
    ('denoise_unet', 'lift1.bias', 'BIAS'),
  ],
)
def test_parameter_types_follow_the_layer(name, key, kind):
  workload = built(name)
  workload.init_model_fn(RNG)
  assert workload.model_params_types[key] == spec.ParameterType[kind]


@each_workload
def test_loss_falls_in_a_few_steps(name):
  workload = built(name)
  model, _ = workload.init_model_fn(RNG)
  optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
  queue = queue_of(workload, batch_size=workload.batch_size)
  before = evaluate(workload, model, 'eval_train', 64)['loss']
  for _ in range(100):
    batch = next(queue)
    logits = forward(workload, model, batch)
    loss = workload.loss_fn(batch['targets'], logits)
    (loss['summed'] / loss['n_valid_examples']).backward()
    optimizer.step()
    optimizer.zero_grad()
  after = evaluate(workload, model, 'eval_train', 64)['loss']
  assert after < 0.99 * before


@each_workload
def test_padding_does_not_change_metrics(name):
  workload = built(name)
  model, _ = workload.init_model_fn(RNG)
  whole = evaluate(workload, model, 'eval_train', 32)
  padded = evaluate(workload, model, 'eval_train', 28)
  assert workload.target_metric_name in whole
  for key, value in whole.items():
    # float32 forward passes of other batch shapes.
    assert padded[key] == pytest.approx(value, rel=1e-5)


@each_workload
def test_mask_takes_examples_out_of_the_loss(name):
  workload = built(name)
  model, _ = workload.init_model_fn(RNG)
  batch = next(queue_of(workload, batch_size=4))
  logits = forward(workload, model, batch).detach()
  mask = torch.tensor([1.0, 0.0, 1.0, 1.0])
  kept = torch.tensor([0, 2, 3])
  loss = workload.loss_fn(batch['targets'], logits, mask)
  part = workload.loss_fn(batch['targets'][kept], logits[kept])
  assert loss.keys() == {'summed', 'n_valid_examples', 'per_example'}
  # Equal terms, added up in another order.
  torch.testing.assert_close(loss['summed'], part['summed'])
  assert loss['n_valid_examples'] == part['n_valid_examples']
  assert not loss['per_example'][1].any()
  assert len(loss['per_example']) == 4


@pytest.mark.parametrize('name', ['glyph_resnet', 'stdlib_lm'])
def test_softmax_label_smoothing_mixes_with_the_uniform(name):
  workload = built(name)
  model, _ = workload.init_model_fn(RNG)
  batch = next(queue_of(workload, batch_size=4))
  logits = forward(workload, model, batch).detach().double()
  smooth = workload.loss_fn(batch['targets'], logits, label_smoothing=0.2)
  log_p = logits.log_softmax(-1)
  hard = log_p.gather(-1, batch['targets'].unsqueeze(-1)).squeeze(-1)
  expected = -(0.8 * hard + 0.2 * log_p.mean(-1))
  # float64 throughout: rounding only.
  torch.testing.assert_close(
    smooth['per_example'], expected, rtol=1e-12, atol=1e-12
  )


def test_sigmoid_label_smoothing_moves_labels_towards_a_half():
  loss = built('click_dlrm').loss_fn(
    torch.tensor([1.0, 0.0], dtype=torch.float64),
    torch.tensor([0.0, 2.0], dtype=torch.float64),
    label_smoothing=0.2,
  )
  # log 2, and log(1 + e^2) - 0.1 * 2.
  expected = [np.log(2.0), np.log1p(np.exp(2.0)) - 0.2]
  np.testing.assert_allclose(loss['per_example'], expected, rtol=1e-12)


@each_workload
def test_dropout_rate_acts_in_training_only(name):
  workload = built(name)
  model, _ = workload.init_model_fn(RNG)
  batch = next(queue_of(workload))
  torch.manual_seed(1)
  first = forward(workload, model, batch, dropout=0.5)
  second = forward(workload, model, batch, dropout=0.5)
  torch.manual_seed(1)
  again = forward(workload, model, batch, dropout=0.5)
  assert not torch.equal(first, second)
  assert torch.equal(first, again)
  evaluated = forward(workload, model, batch, EVAL, dropout=0.5)
  assert torch.equal(evaluated, forward(workload, model, batch, EVAL))
  assert not evaluated.requires_grad
  assert first.requires_grad


def test_update_batch_norm_decides_whether_statistics_move():
  workload = built('glyph_resnet')
  model, _ = workload.init_model_fn(RNG)
  batch = next(queue_of(workload, batch_size=32))
  start = {k: v.clone() for k, v in model.named_buffers()}
  frozen = forward(workload, model, batch, update=False)
  for key, buffer in model.named_buffers():
    assert torch.equal(buffer, start[key]), key
  moving = forward(workload, model, batch, update=True)
  assert torch.equal(frozen, moving)  # both normalise by the batch
  assert model.stem_bn.num_batches_tracked == 1
  assert not torch.equal(
    model.stem_bn.running_mean, start['stem_bn.running_mean']
  )
  evaluated = forward(workload, model, batch, EVAL, update=False)
  assert not torch.equal(evaluated, moving)
  assert model.stem_bn.num_batches_tracked == 1


def test_wrapped_model_goes_back_to_training_after_an_unwrapped_evaluation():
  workload = built('glyph_resnet')
  model, _ = workload.init_model_fn(RNG)
  compiled = torch.compile(model, backend='eager')
  batch = next(queue_of(workload))
  forward(workload, model, batch, EVAL)
  assert not model.training
  forward(workload, compiled, batch, TRAIN)
  assert model.training


def slow_ssim(image, target):
  values = []
  for i in range(image.shape[0] - 6):
    for j in range(image.shape[1] - 6):
      a = image[i : i + 7, j : j + 7].ravel()
      b = target[i : i + 7, j : j + 7].ravel()
      (var_a, cov), (_, var_b) = np.cov(a, b)
      top = (2 * a.mean() * b.mean() + 1e-4) * (2 * cov + 9e-4)
      bottom = (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (var_a + var_b + 9e-4)
      values.append(top / bottom)
  return np.mean(values)


def test_ssim_equals_its_definition():
  image, target = np.random.default_rng(0).random((2, 12, 10))
  fast = denoise_unet.ssim(
    torch.from_numpy(image)[None, None], torch.from_numpy(target)[None, None]
  )
  # float64; the variance as a difference of means loses a few digits.
  assert fast.item() == pytest.approx(slow_ssim(image, target), rel=1e-10)
  same = torch.from_numpy(image)[None, None]
  assert denoise_unet.ssim(same, same).item() == pytest.approx(1.0)


def test_two_ranks_give_the_metrics_and_gradients_of_one(tmp_path):
  write = workload_ranks.write_metrics_and_gradient
  gloo.run_on_ranks(2, write, str(tmp_path))
  (metrics, gradient), (other_metrics, _) = (
    json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(2)
  )
  assert metrics == other_metrics
  model, alone = workload_ranks.metrics_and_gradient()
  assert set(alone) == {
    *('train/loss', 'validation/loss', 'test/loss'),
    *('validation/num_examples', 'test/num_examples'),
  }
  # float32 sums in another order.
  assert metrics == pytest.approx(alone, rel=1e-5)
  np.testing.assert_allclose(
    gradient, model.hidden1.weight.grad, rtol=1e-4, atol=1e-7
  )
