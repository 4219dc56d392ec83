"""Learning rates against typed-out values and against torch's schedulers."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from weightavg.pytorch import schedules


def rates(steps, **kwargs):
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
  scheduler = schedules.build_scheduler(optimizer, **kwargs)
  seen = []
  for _ in range(steps):
    seen.append(optimizer.param_groups[0]['lr'])
    optimizer.step()
    scheduler.step()
  return seen


@pytest.mark.parametrize(
  ('kwargs', 'expected'),
  [
    (
      {'budget': 8, 'warmup_factor': 0.25},
      [2e-10, 1.0, 2.0, 1.8660254, 1.5, 1.0, 0.5, 0.1339746, 0.0, 0.0],
    ),
    (
      {'budget': 4, 'schedule': 'cosine_to_half'},
      [2.0, 1.8535534, 1.5, 1.1464466, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    ),
    (
      {'budget': 10, 'warmup_factor': 0.2, 'schedule': 'constant'},
      [2e-10, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0],
    ),
    (
      {'budget': 8, 'schedule_factor': 0.5},
      [2.0, 1.7071068, 1.0, 0.2928932, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ),
  ],
)
def test_rates_are_as_typed(kwargs, expected):
  assert rates(10, **kwargs) == pytest.approx(expected, abs=1e-7)


# torch warns about its own SequentialLR calling the schedulers' step.
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_cosine_is_the_curve_of_the_benchmarks_baselines():
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
  warmup = LinearLR(
    optimizer, start_factor=1e-10, end_factor=1.0, total_iters=5
  )
  cosine = CosineAnnealingLR(optimizer, T_max=95)
  theirs = SequentialLR(optimizer, [warmup, cosine], milestones=[5])
  expected = []
  for _ in range(100):
    expected.append(optimizer.param_groups[0]['lr'])
    optimizer.step()
    theirs.step()
  # Theirs is a recursion over 100 steps, ours closed: rounding only.
  assert rates(100, budget=100, warmup_factor=0.05) == pytest.approx(
    expected, abs=1e-12
  )


def test_a_restored_scheduler_continues():
  def build():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    return optimizer, schedules.build_scheduler(optimizer, 10, 0.2)

  optimizer, scheduler = build()
  for _ in range(4):
    optimizer.step()
    scheduler.step()
  other_optimizer, other = build()
  other_optimizer.load_state_dict(optimizer.state_dict())
  other.load_state_dict(scheduler.state_dict())
  for o, s in ((optimizer, scheduler), (other_optimizer, other)):
    o.step()
    s.step()
  assert (
    other_optimizer.param_groups[0]['lr'] == optimizer.param_groups[0]['lr']
  )


@pytest.mark.parametrize(
  'other', [{'budget': 20}, {'warmup_factor': 0.5}, {'schedule': 'constant'}]
)
def test_a_restored_scheduler_warns_of_another_curve(other):
  """Issue 15: a resumed run took another learning rate without a word."""

  def build(**kwargs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    kwargs = {'budget': 10, 'warmup_factor': 0.2} | kwargs
    return schedules.build_scheduler(optimizer, **kwargs)

  saved = build().state_dict()
  scheduler = build(**other)
  with pytest.warns(UserWarning, match='The saved run followed'):
    scheduler.load_state_dict(saved)
  # The curve is the constructor's, the saved one is not adopted.
  assert scheduler.curve == build(**other).curve
  # A state without a curve, of an earlier version, loads silently.
  del saved['curve']
  build(**other).load_state_dict(saved)


def test_an_unknown_schedule_is_refused():
  with pytest.raises(ValueError, match=r"schedule='linear'\. Must be"):
    schedules.factor(0, 10, 0.0, 'linear')
