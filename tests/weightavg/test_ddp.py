"""Two gloo ranks: one trajectory, the same on both, restored or not."""

import torch
import torch.distributed as dist
from gloo import run_on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from weightavg.pytorch import train_step
from weightavg.pytorch.build_nadamw import NADAMW
from weightavg.schemes import SCHEMES

SAMPLED = {'averaging_every_steps': 1, 'averaging_horizon': 0.1}
KNOBS = {
  'none': {},
  'lawa': SAMPLED,
  'ema': SAMPLED,
  'polynomial': {'averaging_every_steps': 1},
  'schedule_free': {'one_minus_beta1': 1.0, 'schedule_free_power': 2.0},
}
# With BatchNorm the ranks differ from one process.
NORMALISED = {
  'schedule_free': {
    'averaging_batch_norm': 'refreshed',
    'averaging_refresh_every': 2,
  },
  'ema': {'averaging_batch_norm': 'averaged'},
}


class Workload:
  step_hint = 40
  metrics_logger = None

  def model_fn(self, params, augmented_and_preprocessed_input_batch, **kwargs):
    return params(augmented_and_preprocessed_input_batch['inputs']), None

  def loss_fn(
    self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0
  ):
    per_example = (logits_batch - label_batch).pow(2).sum(-1) * mask_batch
    return {
      'summed': per_example.sum(),
      'n_valid_examples': mask_batch.sum(),
      'per_example': per_example,
    }


def build(scheme, normalised=False):
  torch.manual_seed(0)
  norm = nn.BatchNorm1d(3) if normalised else nn.Identity()
  model = nn.Sequential(nn.Linear(4, 3), norm, nn.Tanh(), nn.Linear(3, 2))
  knobs = KNOBS[scheme] | (NORMALISED[scheme] if normalised else {})
  if dist.is_initialized():
    model = DistributedDataParallel(model)
  state = train_step.init_optimizer_state(
    Workload(),
    model,
    {'learning_rate': 0.05} | knobs,
    NADAMW,
    SCHEMES[scheme],
  )
  return model, state


def batch(step, rank, world_size):
  """Rank's rows of eight; in odd steps the last four rows are padding."""
  generator = torch.Generator().manual_seed(step)
  rows = {
    'inputs': torch.randn(8, 4, generator=generator),
    'targets': torch.randn(8, 2, generator=generator),
    'weights': torch.ones(8),
  }
  if step % 2:
    rows['weights'][4:] = 0.0
  size = 8 // world_size
  return {k: v[rank * size : (rank + 1) * size] for k, v in rows.items()}


def call(function, model, state, **kwargs):
  return function(
    workload=Workload(),
    current_param_container=model,
    current_params_types=None,
    model_state=None,
    hyperparameters=None,
    loss_type=None,
    optimizer_state=state,
    eval_results=[],
    rng=(0, 1),
    **kwargs,
  )


def train(model, state, first, last, rank=0, world_size=1):
  for step in range(first, last):
    state, model, _ = call(
      train_step.update_params,
      model,
      state,
      batch=batch(step, rank, world_size),
      global_step=step,
    )
  return model, state


def evaluate(model, state):
  state, model, _ = call(
    train_step.prepare_for_eval, model, state, global_step=0
  )
  return model, state


def flat(model):
  tensors = model.state_dict().values()
  return torch.cat(
    [t.detach().flatten() for t in tensors if t.is_floating_point()]
  )


def assert_equal_on_ranks(tensor):
  gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
  dist.all_gather(gathered, tensor.contiguous())
  assert all(torch.equal(gathered[0], other) for other in gathered)


def all_schemes(rank, folder):
  # One pair of processes for all: starting them is most of the test's time.
  for scheme in NORMALISED:
    undisturbed_and_resumed(rank, scheme, folder, normalised=True)
  for scheme in KNOBS:
    undisturbed_and_resumed(rank, scheme, folder)


def undisturbed_and_resumed(rank, scheme, folder, normalised=False):
  model, state = train(*build(scheme, normalised), 0, 5, rank, 2)
  model, state = evaluate(model, state)
  if rank == 0:
    # As the benchmark saves: after prepare_for_eval, on rank 0 alone.
    torch.save(
      {
        'model': model.module.state_dict(),
        'state': {k: v.state_dict() for k, v in state.items()},
      },
      f'{folder}/checkpoint',
    )
  dist.barrier()
  model, state = evaluate(*train(model, state, 5, 9, rank, 2))
  undisturbed = flat(model)
  assert_equal_on_ranks(undisturbed)

  saved = torch.load(f'{folder}/checkpoint', weights_only=True)
  model, state = build(scheme, normalised)
  # As the benchmark restores: the module inside DDP is what is handed on.
  model = model.module
  model.load_state_dict(saved['model'])
  for key, value in state.items():
    value.load_state_dict(saved['state'][key])
  model, state = train(model, state, 5, 9, rank, 2)
  assert isinstance(model, DistributedDataParallel)
  model, state = evaluate(model, state)
  assert torch.equal(flat(model), undisturbed)
  if rank == 0:
    torch.save(undisturbed, f'{folder}/{scheme}')


def test_two_ranks_agree_resume_exactly_and_match_one_process(tmp_path):
  run_on_ranks(2, all_schemes, str(tmp_path))
  for scheme in KNOBS:
    model, _ = evaluate(*train(*build(scheme), 0, 9))
    # The same gradients summed in another order, through nine steps.
    torch.testing.assert_close(
      torch.load(tmp_path / scheme, weights_only=True),
      flat(model),
      rtol=1e-5,
      atol=1e-6,
    )
