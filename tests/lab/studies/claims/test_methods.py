"""Lookahead and the 1/sqrt(t) schedule against literal arithmetic."""

import dataclasses
import types

import pytest
import torch

from lab.studies.claims import runs
from lab.studies.submissions import inverse_sqrt, lookahead
from lab.studies.submissions.lookahead import Lookahead
from lab.workloads import click_dlrm

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
