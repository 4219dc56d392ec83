"""Submissions that exist for comparison, against literal arithmetic."""

import dataclasses
import importlib
import pathlib
import types

import pytest
import schedulefree
import torch

from lab.offline import batch_norm
from lab.studies import submissions
from lab.studies.claims import runs
from lab.studies.parts import training
from lab.studies.submissions import (
  adamw_schedulefree,
  inverse_sqrt,
  lookahead,
)
from lab.studies.submissions.lookahead import Lookahead
from lab.workloads import build_workload, click_dlrm, glyph_resnet

STEPS = 40


@pytest.fixture(autouse=True)
def small(shrink):
  shrink(click_dlrm.Workload, target=0.0, size=64)


def short(run):
  """The run with forty steps, of which the last is evaluated."""
  return dataclasses.replace(
    run,
    length=STEPS / click_dlrm.Workload.steps,
    follows=run.follows
    | {
      'candidates': {'raw': {'averaging_scheme': 'none'}},
      'evaluated_from': 0.0,
    },
  )


def values(run, directory):
  return [v for *_, v in run.execute(str(directory))['curves']['raw']]


def test_slow_weights_follow_a_slow_reference():
  """SGD on a quadratic, k = 3, alpha = 0.25, in float64."""
  weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
  model = torch.nn.ParameterList([weight])
  optimizer = torch.optim.SGD([weight], lr=0.1)
  slow = Lookahead(model, every=3, alpha=0.25)
  x, s = [1.0, -2.0], [1.0, -2.0]
  for step in range(1, 11):
    optimizer.zero_grad()
    (weight**2).sum().backward()
    optimizer.step()
    slow.update()
    x = [a - 0.1 * 2 * a for a in x]
    if step % 3 == 0:
      s = [b + 0.25 * (a - b) for a, b in zip(x, s, strict=True)]
      x = list(s)
    assert weight.tolist() == pytest.approx(x, rel=1e-14)
    slow.show()
    slow.show()
    assert weight.tolist() == pytest.approx(s, rel=1e-14)
    slow.hide()
    assert weight.tolist() == pytest.approx(x, rel=1e-14)


def test_slow_weights_are_restored_in_the_middle_of_an_evaluation():
  torch.manual_seed(0)
  model = torch.nn.Linear(2, 1)
  slow = Lookahead(model, every=2)
  with torch.no_grad():
    model.weight.add_(1.0)
  slow.update()
  fast = model.weight.clone()
  slow.show()
  saved = {k: v for k, v in slow.state_dict().items()}
  other = torch.nn.Linear(2, 1)
  other.load_state_dict(model.state_dict())
  restored = Lookahead(other, every=2)
  restored.load_state_dict(saved)
  restored.hide()
  assert torch.equal(other.weight, fast)
  restored.update()
  assert torch.equal(other.weight, (fast - 0.5))


def test_lookahead_trains_otherwise_than_nadamw_and_repeats_itself(tmp_path):
  run = short(runs.lookahead('click_dlrm', 0))
  assert run.submission_path.endswith('studies/submissions/lookahead.py')
  found = values(run, tmp_path / 'once')
  assert found == values(run, tmp_path / 'again')
  assert found != values(
    short(runs.at_rate('click_dlrm', 0, 1.0)), tmp_path / 'plain'
  )


def trained(evaluated_after):
  """Weights after eleven steps, with evaluations after some of them."""
  run = short(runs.lookahead('click_dlrm', 0))
  workload = run.build()
  model, _ = workload.init_model_fn((0, 0))
  point = types.SimpleNamespace(**run.point, _asdict=lambda: run.point)
  state = lookahead.init_optimizer_state(workload, model, None, point, 0)
  queue = workload._build_input_queue((0, 0), 'train', '', 8)
  shared = {
    'workload': workload,
    'current_param_container': model,
    'current_params_types': workload.model_params_types,
    'model_state': None,
    'hyperparameters': point,
    'loss_type': workload.loss_type,
    'optimizer_state': state,
    'eval_results': [],
    'rng': (0, 0),
  }
  for step in range(11):
    lookahead.update_params(**shared, batch=next(queue), global_step=step)
    if step in evaluated_after:
      lookahead.prepare_for_eval(**shared, global_step=step)
      slow = state['lookahead'].state_dict()['slow']
      assert all(map(torch.equal, model.parameters(), slow))
  state['lookahead'].hide()
  return [p.detach().clone() for p in model.parameters()]


def test_evaluations_do_not_change_the_training_inside_lookahead():
  plain, evaluated = trained(()), trained((2, 3, 4, 6, 10))
  assert all(map(torch.equal, plain, evaluated))


def test_the_rate_falls_with_the_root_of_the_steps():
  rates = [inverse_sqrt.factor(step, 100, 0.1) for step in (5, 10, 20, 40, 100)]
  # a = 10: sqrt(10 / 10), sqrt(10 / 20), sqrt(10 / 40), sqrt(10 / 100).
  assert rates == pytest.approx([0.5, 1.0, 0.5**0.5, 0.5, 0.1**0.5])


def test_the_submission_trains_at_that_rate():
  run = short(runs.on_schedule('click_dlrm', 0, runs.INVERSE_SQRT))
  workload = run.build()
  model, _ = workload.init_model_fn((0, 0))
  state = inverse_sqrt.init_optimizer_state(workload, model, None, run.point, 0)
  (group,) = state['optimizer'].param_groups
  peak, warmup = run.point['learning_rate'], run.point['warmup_factor']
  for step in range(STEPS):
    expected = inverse_sqrt.factor(step, STEPS, warmup)
    assert group['lr'] == pytest.approx(peak * expected, rel=1e-12)
    state['optimizer'].step()
    state['scheduler'].step()


def test_the_schedule_changes_the_run(tmp_path):
  own = short(runs.on_schedule('click_dlrm', 0, runs.INVERSE_SQRT))
  constant = short(runs.on_schedule('click_dlrm', 0, 'constant'))
  assert values(own, tmp_path / 'own') != values(constant, tmp_path / 'flat')


def state_of(module, point, workload):
  """A model and the submission's state of it."""
  model, _ = workload.init_model_fn((0, 0))
  return model, module.init_optimizer_state(workload, model, None, point, 0)


def arguments(workload, model, state):
  """The benchmark's arguments that are the same at each step."""
  return {
    'workload': workload,
    'current_param_container': model,
    'current_params_types': workload.model_params_types,
    'model_state': None,
    'hyperparameters': None,
    'loss_type': workload.loss_type,
    'optimizer_state': state,
    'eval_results': [],
    'rng': (0, 0),
  }


SCHEDULEFREE = {
  'learning_rate': 0.01,
  'one_minus_beta1': 0.2,
  'beta2': 0.9,
  'weight_decay': 0.1,
  'warmup_steps': 3,
  'schedule_free_power': 2.0,
}


def schedulefree_weights(evaluated_after):
  """y after six steps, and x after the steps that are evaluated."""
  workload = build_workload('click_dlrm')
  model, state = state_of(adamw_schedulefree, SCHEDULEFREE, workload)
  queue = workload._build_input_queue((0, 0), 'train', '', 8)
  shared = arguments(workload, model, state)
  shown = []
  for step in range(6):
    adamw_schedulefree.update_params(
      **shared, batch=next(queue), global_step=step
    )
    if step in evaluated_after:
      adamw_schedulefree.prepare_for_eval(**shared, global_step=step)
      adamw_schedulefree.prepare_for_eval(**shared, global_step=step)
      shown.append([p.detach().clone() for p in model.parameters()])
  state['optimizer'].train()
  return [p.detach().clone() for p in model.parameters()], shown


def test_schedulefree_is_driven_as_its_readme_says():
  plain, _ = schedulefree_weights(())
  _, (mine,) = schedulefree_weights({5})
  # The loop of its README, with the same model and batches.
  workload = build_workload('click_dlrm')
  model, _ = workload.init_model_fn((0, 0))
  optimizer = schedulefree.AdamWScheduleFree(
    model.parameters(),
    lr=0.01,
    betas=(0.8, 0.9),
    weight_decay=0.1,
    warmup_steps=3,
    r=2.0,
  )
  queue = workload._build_input_queue((0, 0), 'train', '', 8)
  optimizer.train()
  model.train()
  for _ in range(6):
    batch = next(queue)
    optimizer.zero_grad()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
      model(batch['inputs']).squeeze(), batch['targets']
    )
    losses.backward()
    optimizer.step()
  y = [p.detach().clone() for p in model.parameters()]
  optimizer.eval()
  # Sums of float32 in another order.
  close = {'rtol': 1e-4, 'atol': 1e-6}
  for own, theirs in zip(plain, y, strict=True):
    torch.testing.assert_close(own, theirs, **close)
  for own, theirs in zip(mine, model.parameters(), strict=True):
    torch.testing.assert_close(own, theirs, **close)
  assert not all(map(torch.equal, plain, mine))


def test_evaluations_move_the_weights_of_schedulefree_by_rounding_only():
  """Its package computes y from x, which is not exact: float32."""
  plain, _ = schedulefree_weights(())
  evaluated, shown = schedulefree_weights({1, 3})
  assert len(shown) == 2
  for own, theirs in zip(plain, evaluated, strict=True):
    torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-5)


def test_running_statistics_of_schedulefree_are_those_of_x(shrink):
  shrink(glyph_resnet.Workload, target=1.0, size=32)
  workload = build_workload('glyph_resnet')
  model, state = state_of(adamw_schedulefree, SCHEDULEFREE, workload)
  queue = workload._build_input_queue((0, 0), 'train', '', 8)
  shared = arguments(workload, model, state)
  batches = [next(queue) for _ in range(3)]
  for step, batch in enumerate(batches):
    adamw_schedulefree.update_params(**shared, batch=batch, global_step=step)
  adamw_schedulefree.prepare_for_eval(**shared, global_step=3)
  layer = batch_norm.norms(model)[0]
  seen = []
  hook = layer.register_forward_pre_hook(
    lambda module, inputs: seen.append(inputs[0].mean((0, 2, 3)))
  )
  model.eval()
  for batch in batches:
    model(batch['inputs'])
  hook.remove()
  # The inputs of the first layer depend on no other statistics.
  expected = torch.stack(seen).mean(0)
  torch.testing.assert_close(layer.running_mean, expected)
  # Without running statistics no batch is kept.
  other = build_workload('click_dlrm')
  _, state = state_of(adamw_schedulefree, SCHEDULEFREE, other)
  assert state['recent'].batches.maxlen == 0


def test_the_knobs_of_lookahead_come_from_the_point():
  workload = build_workload('click_dlrm')
  point = training.tuned_point('click_dlrm')
  for extra, expected in (
    ({}, (5, 0.5)),
    ({'lookahead_every': 10, 'lookahead_alpha': 0.8}, (10, 0.8)),
  ):
    _, state = state_of(lookahead, point | extra, workload)
    assert (state['lookahead'].every, state['lookahead'].alpha) == expected
  for extra in ({'lookahead_every': 0}, {'lookahead_alpha': 1.5}):
    with pytest.raises(ValueError, match=r'Invalid lookahead_\w+=.* Must be'):
      state_of(lookahead, point | extra, workload)


@pytest.mark.parametrize(
  'path',
  sorted(pathlib.Path(submissions.__path__[0]).glob('*.py')),
  ids=lambda path: path.stem,
)
def test_every_file_is_a_submission_or_names_none(path):
  if path.stem in ('__init__', 'points'):
    return
  module = importlib.import_module(f'{submissions.__name__}.{path.stem}')
  assert module.__all__ == [
    'data_selection',
    'get_batch_size',
    'init_optimizer_state',
    'prepare_for_eval',
    'update_params',
  ]
  assert f'`{path.stem}`' in submissions.__doc__
