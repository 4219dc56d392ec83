"""The submissions in JAX with a budget that the clock plans."""

import itertools

import pytest
from jax_submissions import PRIMAL, Host
from jax_support import import_jax

jax_host = import_jax('jax_host')


def test_self_tuning_plans_by_the_clock_and_resumes_its_plan(tmp_path):
  """The plan's numbers come back exactly, in float64."""

  class Billed(jax_host.Workload):
    max_allowed_runtime_sec = 1000.0

  def host():
    made = Host('nadamw_ema_jax', workload=Billed())
    made.state = made.submission.init_optimizer_state(
      made.workload, made.params, made.model_state, None, None
    )
    made.hyperparameters = None
    return made

  first, resumed = host(), host()
  trainer = first.state[1]
  assert trainer.budget == 500
  assert trainer.pacer.clock.plan.seconds == 1500.0
  # Durations of the test's own: a hundredth of the time in ten steps.
  now = itertools.count(0, 1.5 / 7)
  for made in (first, resumed):
    made.state[1].pacer.clock.now = lambda: next(now)
  for _ in range(6):
    first.update(train_state={'accumulated_submission_time': 1 / 3})
  first.prepare_for_eval()
  first.save(tmp_path)
  resumed.restore(tmp_path, device_axis=True)
  resumed.update()
  plan = resumed.state[1].pacer.clock.plan
  expected = trainer.pacer.clock.plan
  assert plan.state_dict() == expected.state_dict()
  assert plan.step == 6
  assert 0.3 < plan.elapsed < 2.0


def test_a_horizon_follows_the_budget_that_the_clock_plans():
  """The share of a horizon is handed to the compiled step."""

  class Billed(jax_host.Workload):
    max_allowed_runtime_sec = 1000.0

  host = Host(PRIMAL, workload=Billed(), budget='clock', averaging_horizon=0.1)
  clock = host.state[1].pacer.clock

  def update(total):
    host.update()
    b, k = 1 - 1 / round(0.1 * total), host.step
    c = float(host.state[0].train.optimizer.coefficient)
    assert c == pytest.approx((1 - b) / (1 - b**k), rel=1e-5)

  update(500)
  update(500)
  # Durations of the test's own: 4 s per step, of 950 that may be spent.
  now = itertools.count(0, 4.0)
  clock.now = lambda: next(now)
  while clock.plan.total == 500:
    clock.begin_step()
  assert 200 < clock.plan.total < 260
  update(clock.plan.total)


def test_probes_follow_the_budget_that_the_clock_plans(tmp_path):
  """Also in the first step of a resumed run, whose batch is chosen first."""

  class Billed(jax_host.Workload):
    max_allowed_runtime_sec = 1000.0

  def host():
    return Host(
      'nadamw_auto_jax',
      workload=Billed(),
      budget='clock',
      averaging_probe_every=0.1,
    )

  first, resumed = host(), host()
  state, trainer = first.state
  first.update()
  state = first.state[0]
  due = [s for s in range(1, 101) if trainer.is_probe_due(state, s)]
  assert due == [50, 100]
  clock = trainer.pacer.clock
  now = itertools.count(0, 4.0)
  clock.now = lambda: next(now)
  while clock.plan.total == 500:
    clock.begin_step()
  every = round(0.1 * clock.plan.total)
  assert 20 < every < 26
  due = [s for s in range(1, 101) if trainer.is_probe_due(state, s)]
  assert due == list(range(every, 101, every))
  first.update()
  first.prepare_for_eval()
  first.save(tmp_path)
  resumed.restore(tmp_path, device_axis=True)
  # The host asks for the next batch before it hands the state to the step.
  resumed.state[1].is_probe_due(resumed.state[0], 1)
  assert resumed.state[1].pacer.clock.plan.total == clock.plan.total
  assert resumed.state[1].is_probe_due(resumed.state[0], every)
