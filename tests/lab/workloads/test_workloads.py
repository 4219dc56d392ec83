"""The local workloads: their contract, their streams, losses and metrics."""

import functools
import json
import pathlib

import gloo
import numpy as np
import pytest
import torch
import workload_ranks

from lab import workloads
from lab.studies.parts import tuned
from lab.studies.parts.methods import METHODS
from lab.studies.parts.training import tuned_point
from lab.workloads import (
  base,
  click_dlrm,
  denoise_unet,
  glyph_resnet,
  stdlib_lm,
  stream,
  targets,
)
from weightavg import spec
from weightavg.optimizers import published_batch_size
from weightavg.pytorch.build_nadamw import NADAMW
from weightavg.schemes import Raw
from weightavg.submission_config import SubmissionConfig
from weightavg.workloads import batch_size_of

NAMES = sorted(workloads.WORKLOADS)
RNG = np.array([11, 12])
TRAIN, EVAL = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL
each_workload = pytest.mark.parametrize('name', NAMES)


@functools.cache
def built(name):
  return workloads.build_workload(name)


def queue_of(workload, split='train', batch_size=8, rng=RNG):
  return workload._build_input_queue(rng, split, '', batch_size)


def forward(workload, model, batch, mode=TRAIN, update=True, dropout=0.0):
  logits, state = workload.model_fn(
    model, batch, None, mode, RNG, update, dropout
  )
  assert state is None
  return logits


def evaluate(workload, model, split, batch_size):
  size = workload.sizes[split]
  return workload._eval_model_on_split(
    split, size, batch_size, model, None, RNG, ''
  )


def assert_same_batch(left, right):
  assert left.keys() == right.keys()
  for name in left:
    assert torch.equal(left[name], right[name]), name


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
def test_validation_split_has_ten_thousand_examples_or_tokens(name):
  workload = built(name)
  targets_of_split = workload._split('validation')['targets']
  assert len(targets_of_split) == workload.num_validation_examples
  assert targets_of_split.numel() >= 10_000


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
def test_training_stream_is_a_function_of_seed_and_index(name):
  workload = built(name)
  queue = queue_of(workload)
  batches = [next(queue) for _ in range(4)]
  again, skipping = queue_of(workload), queue_of(workload)
  for batch in batches:
    assert_same_batch(batch, next(again))
  skipping.skip(1)
  skipping.skip(2)
  assert_same_batch(batches[3], next(skipping))
  other = next(queue_of(workload, rng=RNG + 1))
  for different in (batches[1], other):
    assert not torch.equal(batches[0]['inputs'], different['inputs'])


def repeating(steps=6, size=4, epochs=2):
  """A workload that passes several times over three batches of four."""
  workload = workloads.build_workload('click_dlrm')
  workload.steps, workload.batch_size, workload.epochs = steps, size, epochs
  return workload


def test_repeated_data_come_once_in_each_pass_in_another_order():
  workload = repeating()
  assert workload.num_train_examples == 12
  queue = queue_of(workload, batch_size=4)
  passes = [[next(queue)['inputs'] for _ in range(3)] for _ in range(3)]
  examples = [sorted(torch.cat(p).tolist()) for p in passes]
  assert examples[0] == examples[1] == examples[2]
  assert len({tuple(e) for e in examples[0]}) == 12
  assert not torch.equal(torch.cat(passes[0]), torch.cat(passes[1]))
  assert not torch.equal(torch.cat(passes[1]), torch.cat(passes[2]))
  endless = queue_of(built('click_dlrm'), batch_size=4)
  first = torch.cat([next(endless)['inputs'] for _ in range(3)])
  assert sorted(first.tolist()) == examples[0]


def test_repeated_data_are_skipped_and_sliced_as_endless_ones(monkeypatch):
  batches, skipping = (
    queue_of(repeating(), batch_size=4),
    queue_of(repeating(), batch_size=4),
  )
  wanted = [next(batches) for _ in range(5)][4]
  skipping.skip(1)
  skipping.skip(3)
  assert_same_batch(wanted, next(skipping))
  with pytest.raises(ValueError, match='n=-1'):
    skipping.skip(-1)
  whole, parts = next(queue_of(repeating(), batch_size=4)), []
  for rank in range(2):
    monkeypatch.setattr(base, 'rank_and_world', lambda rank=rank: (rank, 2))
    parts.append(next(queue_of(repeating(), batch_size=4)))
  joined = {key: torch.cat([part[key] for part in parts]) for key in whole}
  assert_same_batch(whole, joined)


@each_workload
@pytest.mark.parametrize('split', ['train', 'validation'])
def test_rank_slices_make_up_the_global_batch(name, split, monkeypatch):
  workload = built(name)
  whole = next(queue_of(workload, split, 6))
  parts = []
  for rank in range(3):
    monkeypatch.setattr(base, 'rank_and_world', lambda rank=rank: (rank, 3))
    parts.append(next(queue_of(workload, split, 6)))
  joined = {key: torch.cat([part[key] for part in parts]) for key in whole}
  assert_same_batch(whole, joined)


def test_batch_that_does_not_divide_is_refused(monkeypatch):
  monkeypatch.setattr(base, 'rank_and_world', lambda: (0, 2))
  with pytest.raises(ValueError, match='global_batch_size=5'):
    queue_of(built('click_dlrm'), batch_size=5)


def test_wrong_split_and_negative_skip_are_refused():
  workload = built('click_dlrm')
  with pytest.raises(ValueError, match="split='valid'"):
    queue_of(workload, 'valid')
  for split in ('train', 'validation'):
    with pytest.raises(ValueError, match='n=-1'):
      queue_of(workload, split).skip(-1)


@each_workload
def test_validation_split_is_the_same_in_every_build(name):
  workload = built(name)
  first = next(queue_of(workload, 'validation', 16))
  fingerprint = workload.data_fingerprint()
  for cached in (
    click_dlrm.teacher,
    denoise_unet.scene,
    glyph_resnet.glyphs,
    stdlib_lm.corpus,
  ):
    cached.cache_clear()
  again = workloads.build_workload(name)
  assert_same_batch(first, next(queue_of(again, 'validation', 16, RNG + 1)))
  assert again.data_fingerprint() == fingerprint


def test_language_model_splits_share_no_file():
  shares = {'train': 0, 'validation': 0, 'test': 0}
  for i in range(2000):
    shares[stdlib_lm.split_of(f'module_{i}.py')] += 1
  # Binomial with mean 80: five standard deviations are 44.
  assert 36 < shares['validation'] < 124
  assert 36 < shares['test'] < 124
  corpus = stdlib_lm.corpus()
  assert len(corpus['train']) > 20 * 10_000
  window = corpus['validation'][1000:1200].tobytes()
  assert window not in corpus['train'].tobytes()


def test_evaluation_stream_pads_with_weight_zero_and_repeats():
  arrays = {'inputs': torch.arange(5.0), 'targets': torch.arange(5)}
  queue = stream.EvalStream(arrays, 4, torch.device('cpu'))
  first, second, third = next(queue), next(queue), next(queue)
  assert first['weights'].tolist() == [1, 1, 1, 1]
  assert second['inputs'].tolist() == [4, 4, 4, 4]
  assert second['weights'].tolist() == [1, 0, 0, 0]
  assert_same_batch(first, third)
  queue.skip(2)
  assert_same_batch(second, next(queue))


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
