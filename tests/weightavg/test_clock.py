"""The clock in PyTorch: what it measures, whom it tells, ranks and resumes."""

import io
import itertools
import math
import types

import pytest
import torch
from gloo import run_on_ranks
from torch import nn

from weightavg.averaging_config import AveragingConfig
from weightavg.clock import time_limit
from weightavg.clock_plan import ClockPlan
from weightavg.pytorch import train_step
from weightavg.pytorch.averager import Averager
from weightavg.pytorch.build_nadamw import NADAMW
from weightavg.pytorch.clock import Clock
from weightavg.pytorch.schedules import (
  build_planned_scheduler,
  factor,
  factor_at,
)
from weightavg.schemes import Ema

CPU = torch.device('cpu')


class Time:
  """A clock that tests advance."""

  def __init__(self):
    self.seconds = 0.0

  def __call__(self):
    return self.seconds


def clock_of(longest=1000, seconds=100.0):
  now = Time()
  return Clock(ClockPlan(longest, seconds), CPU, now), now


def test_a_step_lasts_from_its_beginning_to_the_next_one():
  clock, now = clock_of()
  for _ in range(4):
    clock.begin_step()
    now.seconds += 2.0
  # The fourth has not ended.
  assert (clock.plan.step, clock.plan.elapsed) == (3, 6.0)
  clock.pause()
  assert (clock.plan.step, clock.plan.elapsed) == (4, 8.0)


def test_an_evaluation_is_not_billed_and_its_preparation_is():
  clock, now = clock_of()
  clock.begin_step()
  now.seconds += 1.0  # the step, and the swap
  clock.pause()
  now.seconds += 500.0  # the evaluation
  clock.pause()  # the last save follows another one directly
  now.seconds += 500.0
  clock.begin_step()
  now.seconds += 1.0
  clock.begin_step()
  assert (clock.plan.step, clock.plan.elapsed) == (2, 2.0)


def test_the_hosts_bill_counts_where_it_is_higher():
  clock, now = clock_of()
  clock.begin_step()
  for billed, elapsed in ((0.0, 1.0), (30.0, 30.0), (30.5, 31.0)):
    now.seconds += 1.0
    clock.begin_step(billed)
    assert clock.plan.elapsed == elapsed


def test_steps_beside_an_evaluation_do_not_enter_the_measurement():
  clock, now = clock_of(longest=500, seconds=1e6)
  for step in range(200):
    clock.begin_step()
    # 9 s in the first step and in those before and after an evaluation.
    now.seconds += 9.0 if step % 10 in (0, 9) else 0.5
    if step % 10 == 9:
      clock.pause()
  assert clock.plan.measurement().seconds_per_step == 0.5


@pytest.mark.parametrize(('steps', 'is_planned'), [(2, False), (3, True)])
def test_a_plan_needs_steps_that_no_evaluation_is_beside(steps, is_planned):
  clock, now = clock_of(longest=300, seconds=100.0)
  for step in range(300):
    clock.begin_step()
    now.seconds += 1.0
    if step % steps == steps - 1:
      clock.pause()
  assert (clock.plan.total < 300) == is_planned


def test_a_new_plan_is_told_and_changes_no_learning_rate():
  clock, now = clock_of(longest=1000, seconds=100.0)
  told = []
  clock.add_follower(told.append)
  parameter = nn.Parameter(torch.zeros(1))
  optimizer = torch.optim.SGD([parameter], lr=1.0)
  scheduler = build_planned_scheduler(optimizer, clock.plan, 0.05)
  rates = []
  while clock.plan.step < clock.plan.total and len(rates) < 2000:
    before = len(told)
    assert clock.begin_step() == (len(told) == before + 1)
    rates.append(optimizer.param_groups[0]['lr'])
    optimizer.step()
    scheduler.step()
    # Twice as slow after a third of the time.
    now.seconds += 0.2 if now.seconds < 33.0 else 0.4
  assert told
  assert told[-1] == clock.plan.total < 475
  assert now.seconds <= 100.0
  # Up, then down to zero, in steps that are small beside the curve.
  peak = rates.index(max(rates))
  assert rates[peak] > 0.99
  assert rates[: peak + 1] == sorted(rates[: peak + 1])
  assert rates[peak:] == sorted(rates[peak:], reverse=True)
  assert rates[-1] < 1e-3
  jumps = [abs(b - a) for a, b in itertools.pairwise(rates)]
  # The whole curve, of slope pi / 2, over 150 steps: 62 s are left, at 0.4 s.
  assert max(jumps[peak:]) < math.pi / 2 / 150


@pytest.mark.parametrize('schedule', ['cosine', 'cosine_to_half', 'constant'])
@pytest.mark.parametrize('warmup', [0.0, 0.1])
def test_without_a_plan_positions_give_the_schedule_by_steps(schedule, warmup):
  plan = ClockPlan(200, 1.0)
  for step in range(220):
    at = factor_at(plan.position(step), warmup, schedule)
    # The same formula in another order of operations.
    assert at == pytest.approx(factor(step, 200, warmup, schedule), abs=1e-14)


def test_the_averages_horizon_follows_the_plan():
  weight = nn.Parameter(torch.zeros(1))
  config = AveragingConfig.from_point(averaging_scheme='ema')
  averager = Averager.from_config([('weight', weight)], config, budget=10_000)
  assert (averager.sampling.every, averager.scheme) == (20, Ema(0.8))
  for _ in range(40):
    averager.update()
  averager.resample(config.sampling(4000))
  # Still five samples, which are 1 % of the new budget.
  assert (averager.sampling.every, averager.scheme) == (8, Ema(0.8))
  assert averager.samples == 2
  for _ in range(8):
    averager.update()
  assert averager.samples == 3
  # An averager that was told the same can continue; another one cannot.
  state = averager.state_dict()
  other = Averager.from_config([('weight', weight)], config, budget=10_000)
  with pytest.raises(ValueError, match='saved with every=8'):
    other.load_state_dict(state)
  other.resample(config.sampling(4000))
  other.load_state_dict(state)
  assert other.samples == 3


def workload_of(**attributes):
  base = {
    'step_hint': 1000,
    'max_allowed_runtime_sec': 60,
    'metrics_logger': None,
  }
  return types.SimpleNamespace(**base | attributes)


def test_the_limit_is_half_as_long_again_under_self_tuning():
  assert time_limit(workload_of(), is_self_tuning=False) == 60.0
  assert time_limit(workload_of(), is_self_tuning=True) == 90.0


@pytest.mark.parametrize('seconds', ['missing', None, 0, -1, math.inf, 'long'])
def test_a_workload_without_a_time_is_refused(seconds):
  workload = workload_of(max_allowed_runtime_sec=seconds)
  if seconds == 'missing':
    del workload.max_allowed_runtime_sec
  point = {'learning_rate': 1e-3, 'budget': 'clock'}
  with pytest.raises(ValueError, match="Invalid budget='clock'\\. Must be 'st"):
    train_step.init_optimizer_state(
      workload, nn.Linear(2, 2), point, NADAMW, Ema
    )


def state_of(workload, model, budget='clock', **changes):
  point = {'learning_rate': 1e-2, 'warmup_factor': 0.02, 'budget': budget}
  point |= changes
  return train_step.init_optimizer_state(workload, model, point, NADAMW, Ema)


class Host:
  """A run with a clock of its own; the duration of a step is given."""

  def __init__(self, durations, **point):
    torch.manual_seed(0)
    self.durations = durations
    self.workload = workload_of(
      model_fn=lambda params, **_: (params(torch.ones(1, 2)), None),
      loss_fn=lambda logits_batch, **_: {
        'summed': logits_batch.square().sum(),
        'n_valid_examples': 1,
      },
    )
    self.model = nn.Linear(2, 2)
    self.now = Time()
    self.state = state_of(self.workload, self.model, **point)
    self.state['clock'].now = self.now
    self.step = 0

  def _arguments(self):
    return {
      'workload': self.workload,
      'current_param_container': self.model,
      'current_params_types': None,
      'model_state': None,
      'hyperparameters': None,
      'loss_type': None,
      'optimizer_state': self.state,
      'eval_results': [],
      'global_step': self.step,
      'rng': None,
    }

  def run(self, steps):
    for _ in range(steps):
      train_step.update_params(batch={'targets': None}, **self._arguments())
      self.now.seconds += self.durations(self.step)
      self.step += 1
      if self.step % 100 == 0:
        train_step.prepare_for_eval(**self._arguments())
        self.now.seconds += 1000.0

  def save(self):
    model = {k: v.clone() for k, v in self.model.state_dict().items()}
    return model, {k: v.state_dict() for k, v in self.state.items()}

  def load(self, model, state):
    self.model.load_state_dict(model)
    for key, value in self.state.items():
      value.load_state_dict(state[key])


@pytest.mark.parametrize(
  'at',
  [
    100,
    pytest.param(200, marks=pytest.mark.slow),
    pytest.param(300, marks=pytest.mark.slow),
    500,
  ],
)
def test_a_resumed_run_plans_and_trains_like_the_undisturbed_one(at):
  def durations(step):
    return 0.125 if step < 250 else 0.1875  # sums are exact

  whole = Host(durations)
  whole.run(at)
  saved = whole.save()
  file = io.BytesIO()
  torch.save(saved, file)
  file.seek(0)
  resumed = Host(durations)
  resumed.step = at
  resumed.load(*torch.load(file))
  resumed.now.seconds = 2.0**20  # another machine's clock
  whole.run(600 - at)
  resumed.run(600 - at)
  plan = whole.state['clock'].plan
  # 60 s: not all of the 1,000 steps fit.
  assert 300 < plan.total < 600
  assert resumed.state['clock'].plan.state_dict() == plan.state_dict()
  for first, second in zip(
    whole.model.parameters(), resumed.model.parameters(), strict=True
  ):
    assert torch.equal(first, second)
  assert (
    whole.state['averager'].sampling.every
    == resumed.state['averager'].sampling.every
    == 1
  )


def test_samples_that_have_begun_go_on_when_the_run_gets_longer():
  """Half of a schedule is a step further off once the machine is faster."""

  def durations(step):
    return 0.25 if step < 190 else 2.0**-7

  point = {'averaging_start': 0.5, 'averaging_every_steps': 1}
  host = Host(durations, **point)
  averager, plan = host.state['averager'], host.state['clock'].plan
  assert averager.sampling.start == 500
  samples, totals = [], []
  for _ in range(500):
    host.run(1)
    samples.append(averager.samples)
    totals.append(plan.total)
  # 57 s for steps of 0.25 s, then time for all of them.
  assert min(totals) < 250
  assert totals[-1] == 1000
  first = samples.index(1)
  assert first < 190
  assert samples[first:] == list(range(1, 501 - first))
  resumed = Host(durations, **point)
  resumed.load(*host.save())
  assert resumed.state['averager'].sampling == averager.sampling


@pytest.mark.parametrize(
  ('first', 'then', 'planned'), [(0.15, 0.05, 366), (0.05, 0.15, 1000)]
)
def test_a_run_that_resumes_on_another_machine_is_planned_anew(
  first, then, planned
):
  """The learning rate continues, and the schedule ends within 60 s."""
  at, rates = 200, []

  def durations(step):
    rates.append(host.state['optimizer'].param_groups[0]['lr'])
    # Each process compiles for two seconds.
    return (first if step < at else then) + 2.0 * (step in (0, at))

  host = Host(durations)
  host.run(at)
  saved = host.save()
  host = Host(durations)
  host.step = at
  host.load(*saved)
  host.now.seconds = 2.0**20
  plan = host.state['clock'].plan
  # 55 s without compilation, 1 % less for blocks that are not yet complete.
  assert plan.total == pytest.approx(planned, rel=0.01)
  host.run(900)
  seconds = 4.0 + at * first + (host.step - at) * then
  assert plan.elapsed == pytest.approx(seconds)
  # 53 s in all, of which the first machine took 200 steps.
  assert plan.total == pytest.approx(at + (53.0 - at * first) / then, rel=0.01)
  peak = rates.index(max(rates))
  assert rates[peak:] == sorted(rates[peak:], reverse=True)
  assert rates[plan.total :] == [0.0] * (host.step - plan.total)
  # Warm-up takes 20 steps, the steepest cosine 300.
  changes = [abs(b - a) for a, b in itertools.pairwise(rates)]
  assert max(changes[peak:]) < 0.01 * math.pi / 2 / 200


def two_clocks(rank, folder):
  now = Time()
  clock = Clock(ClockPlan(500, 100.0), CPU, now)
  for _ in range(400):
    clock.begin_step()
    # Rank 1 is slow first, rank 0 a little later.
    is_slow = rank == (clock.plan.step < 200)
    now.seconds += 0.5 if is_slow else 0.3
  torch.save(clock.plan.state_dict(), f'{folder}/{rank}')


def test_all_ranks_plan_with_the_slowest_of_them(tmp_path):
  run_on_ranks(2, two_clocks, str(tmp_path))
  first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
  for key in ('total', 'anchor_step', 'anchor_position', 'next_plan'):
    assert first[key] == second[key]
  assert first['elapsed'] < second['elapsed']
  # 95 s at 0.5 s.
  assert 189 <= first['total'] <= 190


def test_only_a_run_that_asks_for_it_has_a_clock():
  workload, model = workload_of(), nn.Linear(2, 2)
  assert 'clock' not in state_of(workload, model, budget='steps')
  keys = list(state_of(workload, model))
  # A restore loads in this order, and the averager asks for the plan's cadence.
  assert keys.index('clock') < keys.index('averager')
