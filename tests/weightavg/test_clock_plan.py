"""Plans of a schedule on the clock: pure arithmetic, so numbers are exact."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightavg import clock_plan
from weightavg.clock_plan import PLANS, UTILIZATION, ClockPlan, Measurement

HUGE = 10**9


def run(plan, durations, steps=HUGE, on_plan=lambda plan: None):
  """Feed durations of steps 1, 2, ... until the schedule ends; seconds."""
  for step, duration in enumerate(durations, 1):
    plan.add(duration)
    if plan.is_due:
      plan.revise(plan.measurement())
      on_plan(plan)
    if step == steps or plan.step >= plan.total:
      break
  return plan.elapsed


def constant(duration):
  while True:
    yield duration


def test_the_schedule_ends_with_the_steps_or_with_the_time():
  # 1000 steps of 0.05 s take 50 s: all of them fit into 0.95 x 100 s.
  plan = ClockPlan(1000, 100.0)
  assert run(plan, constant(0.05)) == pytest.approx(50.0)
  assert plan.total == 1000
  # Of 0.2 s, floor(95 / 0.2) = 475 fit.
  plan = ClockPlan(1000, 100.0)
  assert run(plan, constant(0.2)) == pytest.approx(95.0, abs=0.2)
  assert 474 <= plan.total <= 475


def test_a_block_is_a_fraction_of_the_longest_schedule():
  lengths = (7, 500, 4000, 10_666, 18_094, 195_999)
  blocks = [ClockPlan(length, 1.0).block for length in lengths]
  assert blocks == [1, 10, 80, 100, 100, 979]


def test_the_first_block_and_irregular_steps_do_not_enter_the_measurement():
  plan = ClockPlan(500, 100.0)
  for _ in range(plan.block):
    plan.add(60.0)
  for _ in range(5 * plan.block):
    plan.add(7.0, is_regular=False)
    plan.add(0.5)
  assert plan.measurement().seconds_per_step == 0.5
  assert plan.measurement().elapsed == 60 * 10 + 50 * 7.5
  assert plan.is_due


def test_the_median_of_blocks_drops_outliers_and_keeps_periodic_work():
  plan = ClockPlan(10_000, 1e6)
  assert plan.block == 100
  for step in range(600):
    # Every 50th step takes 2 s longer, as with roots; one step hangs.
    plan.add(1.0 + 2.0 * (step % 50 == 0) + 500.0 * (step == 333))
  assert plan.measurement().seconds_per_step == pytest.approx(1.04)


def test_the_first_measurement_waits_for_its_blocks():
  plan = ClockPlan(1000, 100.0)
  for _ in range(6 * plan.block - 1):
    plan.add(0.1)
    assert not plan.is_due
  with pytest.raises(RuntimeError, match='No block'):
    ClockPlan(10, 1.0).measurement()
  plan.add(0.1)
  assert plan.is_due


def test_positions_run_from_0_to_1_and_a_plan_leaves_the_current_one():
  plan = ClockPlan(1000, 100.0)
  for _ in range(120):
    plan.add(0.2)
  before = [plan.position(step) for step in (0, 60, 120)]
  assert [plan.step_of(p) for p in (0.0, 0.12, 1.0)] == [0, 120, 1000]
  plan.revise(Measurement(0.2, 24.0))
  # 120 + 71 / 0.2 = 475.
  assert plan.total == 475
  assert plan.position(120) == before[2] == 0.12
  assert plan.position(475) == 1.0 == plan.position(600)
  # The rest, 0.88, is passed at 1/355 a step.
  assert plan.position(121) == pytest.approx(0.12 + 0.88 / 355)
  # A quarter of it: 120 + 88.75. What has been passed is passed.
  assert [plan.step_of(p) for p in (0.0, 0.12, 0.34, 1.0)] == [0, 0, 209, 475]


@settings(deadline=None)
@given(
  longest=st.integers(1, 3000),
  ratio=st.floats(0.1, 20.0),
  changes=st.lists(st.floats(0.2, 5.0), min_size=3, max_size=3),
  # One step hangs for up to twice the limit.
  stall=st.sampled_from([0.0, 0.5, 0.97, 2.0]),
  stalls_at=st.floats(0.0, 1.0),
)
def test_positions_never_jump_and_plans_are_few(
  longest, ratio, changes, stall, stalls_at
):
  plan = ClockPlan(longest, 100.0)
  plans = []
  base = ratio * 100.0 / longest

  def durations():
    for change in changes:
      for _ in range(max(1, longest // 3)):
        yield base * change
    yield from constant(base)

  previous = 0.0
  for step, duration in enumerate(durations()):
    hangs = step == round(stalls_at * (longest - 1))
    plan.add(duration + 100.0 * stall * hangs)
    reached = plan.position(plan.step)
    assert 0.0 <= previous <= reached <= 1.0
    # A hundred times as fast as in all steps at most, whatever the clock says.
    assert reached - previous <= 100 / longest + 1e-12
    previous = reached
    if plan.is_due:
      total = plan.revise(plan.measurement())
      plans.append(total)
      assert plan.step <= total <= longest
      # The plan changes the future only.
      assert plan.position(plan.step) == pytest.approx(reached, abs=1e-12)
      assert plan.position(total) == 1.0
    if plan.step >= plan.total:
      break
  assert len(plans) <= PLANS
  assert plan.position(plan.total) == 1.0


@settings(deadline=None)
@given(
  # Few plans are left late in a run: four times slower at 0.8 of the limit
  # ends up to 6 % after it.
  slower=st.floats(1.0, 3.0),
  at=st.floats(0.0, 0.75),
  # From all steps to a quarter of them fit into the limit.
  duration=st.floats(0.05, 0.2),
)
def test_a_machine_that_slows_down_still_ends_in_time(slower, at, duration):
  limit = 1000.0
  plan = ClockPlan(20_000, limit)

  def durations():
    while True:
      yield duration * (slower if plan.elapsed > at * limit else 1.0)

  end = run(plan, durations())
  assert end < limit * 1.001
  # And it does not end much earlier than it has to.
  assert end > (UTILIZATION - 0.06) * limit


def test_a_plan_that_is_too_late_ends_gently():
  plan = ClockPlan(1000, 100.0)
  for _ in range(500):
    plan.add(1.0)
  # Half of the schedule is left: half of 1 % of the longest one.
  assert plan.revise(plan.measurement()) == 505
  # At the end there is nothing left to plan.
  for _ in range(600):
    plan.add(1.0)
  assert plan.revise(plan.measurement()) == plan.step == 1100 == plan.total or (
    plan.total <= 1100
  )
  assert plan.position(plan.step) == 1.0


def test_plans_after_the_limit_do_not_steepen_the_rest_again():
  plan, plans = ClockPlan(1000, 100.0), []

  def durations():
    yield 97.0
    yield from constant(0.05)

  run(plan, durations(), on_plan=lambda p: plans.append((p.step, p.total)))
  # After six blocks of 20 steps 0.88 of the schedule are left: 8.8 steps.
  assert plans[0] == (120, 129)
  # A plan after each step, since each passes a sixteenth.
  assert [step for step, _ in plans] == list(range(120, 120 + len(plans)))
  assert all(129 <= total <= 134 for _, total in plans)


def test_a_clock_that_stands_still_divides_nothing_by_zero():
  plan = ClockPlan(1000, 100.0)
  assert run(plan, constant(0.0)) == 0.0
  assert plan.total == 1000


@pytest.mark.parametrize('cut', [1, 99, 120, 121, 240, 400])
def test_a_resumed_plan_is_the_undisturbed_one(cut):
  def durations(first=0):
    step = first
    while True:
      yield 0.15 + 0.1 * math.sin(step) + 0.2 * (step > 200)
      step += 1

  whole, cut_off = ClockPlan(1000, 100.0), ClockPlan(1000, 100.0)
  totals, again = [], []
  run(whole, durations(), on_plan=lambda p: totals.append((p.step, p.total)))
  run(cut_off, durations(), cut, lambda p: again.append((p.step, p.total)))
  # What a checkpoint holds: numbers, strings, lists.
  saved = json.loads(json.dumps(cut_off.state_dict()))
  resumed = ClockPlan(1000, 100.0)
  resumed.load_state_dict(saved)
  assert resumed.state_dict() == cut_off.state_dict()
  if cut_off.step < cut_off.total:
    run(
      resumed,
      durations(cut),
      on_plan=lambda p: again.append((p.step, p.total)),
    )
  assert again == totals
  assert resumed.state_dict() == whole.state_dict()


def test_another_run_is_not_continued():
  state = ClockPlan(1000, 100.0).state_dict()
  with pytest.raises(ValueError, match='planned with longest=1000, this run'):
    ClockPlan(999, 100.0).load_state_dict(state)
  with pytest.raises(ValueError, match=r'has seconds=150\.0'):
    ClockPlan(1000, 150.0).load_state_dict(state)


@pytest.mark.parametrize(
  ('longest', 'seconds', 'part'),
  [
    (0, 1.0, 'Invalid longest=0'),
    (1.5, 1.0, 'Invalid longest=1.5'),
    (1, 0.0, 'Invalid seconds=0.0'),
    (1, math.inf, 'Invalid seconds=inf'),
    (1, math.nan, 'Invalid seconds=nan'),
  ],
)
def test_bad_arguments(longest, seconds, part):
  with pytest.raises(ValueError, match=part):
    ClockPlan(longest, seconds)


def test_constants_leave_room_for_an_evaluation():
  # The host's period is 1/25 of the limit under external tuning.
  assert clock_plan.UTILIZATION <= 1 - 1 / 25
