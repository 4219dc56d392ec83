"""The training step of the submissions: losses, gradients, rows, points."""

import pytest
import torch
from submission_runs import Host

from weightavg import spec


def test_the_model_is_called_for_training_with_the_points_dropout():
  host = Host('nadamw', dropout_rate=0.25, label_smoothing=0.125)
  host.model.eval()
  host.update()
  assert host.workload.smoothing == 0.125
  assert host.workload.calls == [(spec.ForwardPassMode.TRAIN, True, 0.25)]
  assert host.model.training


def test_without_a_dropout_the_model_has_its_own():
  # AlgoPerf's rules: null stands for the workload's documented rate.
  host = Host('nadamw', dropout_rate=None)
  host.update()
  assert host.workload.calls == [(spec.ForwardPassMode.TRAIN, True, 'own')]


def test_gradients_are_clipped():
  host = Host('nadamw', grad_clip=1e-3)
  host.update()
  norms = [p.grad.norm() for p in host.model.parameters()]
  assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_the_loss_is_a_mean_over_valid_examples():
  host, cut = Host('nadamw'), Host('nadamw')
  batch = next(host.batches())
  mask = torch.tensor([1.0] * 4 + [0.0] * 12)
  host.update(batch | {'weights': mask})
  cut.update({k: v[:4] for k, v in batch.items()})
  for a, b in zip(host.model.parameters(), cut.model.parameters(), strict=True):
    # Sums over 16 and over 4 rows: rounding only.
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_a_batch_without_valid_examples_gives_zero_gradients():
  host = Host('nadamw')
  host.update(next(host.batches()) | {'weights': torch.zeros(16)})
  assert all(not p.grad.any() for p in host.model.parameters())


def test_targets_may_be_tuples():
  host = Host('nadamw_ema')
  batch = next(host.batches())
  host.update(batch | {'targets': (batch['targets'], torch.zeros(16))})
  assert host.step == 1


def test_loss_and_gradient_norm_are_logged_as_the_baselines_do():
  rows = []

  class Logger:
    def append_scalar_metrics(self, metrics, global_step):
      rows.append((global_step, metrics))

  host = Host('nadamw')
  host.workload.metrics_logger = Logger()
  for step in (0, 100, 101, 499, 500, 1000):
    host.step = step
    host.update()
  logged = [step for step, _ in rows]
  assert logged == [0, 100, 500, 1000]
  assert sorted(rows[0][1]) == ['grad_norm', 'loss']
  # The loss is a mean over the 16 examples, of the weights before the step.
  fresh = Host('nadamw')
  batch = next(fresh.batches())
  per_example = (fresh.model(batch['inputs']) - batch['targets']).pow(2).sum(-1)
  assert rows[0][1]['loss'] == pytest.approx(
    per_example.mean().item(), rel=1e-5
  )


def test_the_point_reaches_optimizer_and_schedule():
  host = Host('nadamw', schedule_factor=0.5, warmup_factor=0.0)
  group = host.state['optimizer'].param_groups[0]
  values = host.hyperparameters
  assert group['betas'] == (1 - values.one_minus_beta1, values.beta2)
  assert group['weight_decay'] == values.weight_decay
  for _ in range(125):
    host.update()
  # Half of half of 500 steps: the cosine is at its middle.
  assert group['lr'] == pytest.approx(values.learning_rate / 2)


def test_samples_are_taken_after_the_step():
  host = Host('nadamw_lawa')
  seen = []
  for _ in range(4):
    host.update()
    seen.append(host.weights())
  host.prepare_for_eval()
  # Four float32 additions.
  torch.testing.assert_close(
    host.weights(), torch.stack(seen).mean(0), rtol=1e-6, atol=1e-7
  )
