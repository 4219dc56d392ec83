"""Peculiarities of finewebedu_lm: no weights, tied embeddings, a constant.

The model has the benchmark's width and vocabulary, and one layer of twelve.
"""

import algoperf_support as support
import numpy as np
import pytest
import torch
from algoperf_batches import make_batch

from lab.report import targets
from weightavg.pytorch import train_step

pytestmark = support.MARKS
NAME = 'finewebedu_lm'
# The benchmark's batch: 64 sequences of 1,024 tokens.
TOKENS = (64, 1024)


def start(submission='nadamw_ema', batches=2):
  return support.Run(
    support.load_submission(submission),
    support.make_workload(NAME),
    support.hyperparameters(submission),
    [make_batch(NAME, seed=step) for step in range(batches)],
  )


def test_a_batch_without_weights_is_one_with_equal_weights():
  gradients = []
  for weights in (None, 1.0):
    run = start()
    for batch in run.batches:
      if weights is not None:
        batch['weights'] = torch.full(batch['targets'].shape, weights)
    run.step()
    gradients.append({n: p.grad for n, p in run.model.named_parameters()})
  for name, gradient in gradients[0].items():
    assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize('submission', ['nadamw_ema', 'shampoo_lawa'])
def test_tied_embeddings_and_the_constant_buffer(submission):
  run = start(submission)
  model = run.model
  assert model.lm_head.weight is model.embed_tokens.weight
  constant = model.freqs_cis.clone()
  names = [name for name, _ in model.named_parameters()]
  assert 'embed_tokens.weight' in names
  run.step()
  run.step()
  run.prepare_for_eval()
  # Once in the average, once in the optimizer, which decays it once.
  averager = run.state['averager'].state_dict()
  for stored in averager['buffers']:
    assert sorted(stored) == sorted(names)
  optimizer = run.state['optimizer']
  parameters = [p for g in optimizer.param_groups for p in g['params']]
  assert len({id(p) for p in parameters}) == len(parameters) == len(names)
  # Still tied while the average is shown, and the model sees the average.
  assert model.lm_head.weight.data_ptr() == model.embed_tokens.weight.data_ptr()
  assert torch.equal(model.freqs_cis, constant)
  assert 'freqs_cis' not in dict(model.state_dict())
  run.step()
  assert model.lm_head.weight is model.embed_tokens.weight
  assert torch.equal(model.freqs_cis, constant)


def mean_loss_gradient(dtype, sums_in_autocast):
  """Gradient of a batch's mean loss to the logits, and float64's.

  Eight classes in place of 50,257: the scale of the gradient is that of the
  number of tokens.
  """
  workload = support.make_workload(NAME)
  generator = torch.Generator().manual_seed(0)
  logits = torch.randn(*TOKENS, 8, generator=generator).to(dtype)
  targets_ = torch.randint(8, TOKENS, generator=generator)
  logits.requires_grad_()
  with torch.autocast('cpu', torch.bfloat16, enabled=sums_in_autocast):
    losses = workload.loss_fn(targets_, logits, None)
  share, total = train_step._share_of_mean(losses)
  share.backward()
  exact = logits.detach().double().requires_grad_()
  reference = workload.loss_fn(targets_, exact, None)
  (reference['summed'] / targets_.numel()).backward()
  loss = float(losses['summed'].detach().double() / total.double())
  true = float(reference['summed'].detach()) / targets_.numel()
  return logits.grad, exact.grad, share.dtype, loss / true - 1.0


@pytest.mark.parametrize(
  ('dtype', 'in_autocast', 'scale_error', 'loss_error'),
  [
    (torch.float32, False, 1e-6, 1e-5),
    # Logits in bfloat16, the loss computed in autocast: its sum is in float32.
    (torch.bfloat16, True, 1e-4, 1e-5),
    # The sum itself in bfloat16, as if the loss were outside of autocast: the
    # loss that is logged has 8 bits, the gradient's scale is 1 / 65,536.
    (torch.bfloat16, False, 1e-3, 2**-7),
  ],
)
def test_the_gradients_scale_is_that_of_all_tokens(
  dtype, in_autocast, scale_error, loss_error
):
  found, exact, share_dtype, error = mean_loss_gradient(dtype, in_autocast)
  assert share_dtype == torch.float32
  assert found.dtype == dtype
  found = found.double()
  # Least squares: roundings of single elements cancel, a wrong scale does not.
  scale = float((found * exact).sum() / (exact * exact).sum())
  assert abs(scale - 1.0) < scale_error
  assert abs(error) < loss_error


def test_perplexity_is_better_when_lower_and_the_test_has_no_target():
  workload = support.make_workload(NAME)
  assert workload.target_metric_name == 'ppl'
  assert workload.test_target_value is None
  assert workload.has_reached_test_target({})
  assert workload.has_reached_validation_target({'validation/ppl': 22.0})
  assert not workload.has_reached_validation_target({'validation/ppl': 23.0})
  assert not targets.higher_is_better('ppl')


def test_the_runners_evaluation_has_no_test_split():
  # Zero test examples: a result with no loss, which must not enter a choice.
  workload = support.make_workload(NAME)
  assert workload.num_test_examples == 0
  result = workload._eval_model_on_split(
    'test', 0, 8, None, None, np.array([0, 1]), '', 0
  )
  assert result == {'loss': 0.0, 'ppl': 1.0}
