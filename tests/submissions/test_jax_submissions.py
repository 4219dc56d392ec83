"""The contract of the submissions in JAX."""

import functools
import itertools

import numpy as np
import pytest
from jax_support import import_jax

from weightavg.schemes import Ema

jax, jnp = import_jax('jax', 'jax.numpy')
jax_host = import_jax('jax_host')
spec = import_jax('weightavg.spec')
model_state = import_jax('weightavg.jax.model_state')
Host = jax_host.Host

FOLDERS = sorted(
  p.parent.name for p in jax_host.ROOT.glob('submissions/*_jax/submission.py')
)
BARE = 'nadamw_jax'
AUTO = 'nadamw_auto_jax'
# Statistics of y are shown with x.
PRIMAL = 'nadamw_primal_jax'
# Statistics of x come from forward passes.
REFRESHED = 'nadamw_schedule_free_jax'
# auto may find the raw weights best; with one candidate it cannot. At the start
# of a long warm-up the average is the last sample but for rounding.
ONLY = {
  AUTO: {'averaging_candidates': 'ema 0.1'},
  REFRESHED: {'warmup_steps': 5},
}


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def is_equal(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def test_every_submission_in_jax_is_found():
  assert FOLDERS == [
    'nadamw_auto_jax',
    'nadamw_ema_jax',
    'nadamw_jax',
    'nadamw_lawa_jax',
    'nadamw_primal_jax',
    'nadamw_schedule_free_jax',
  ]


@pytest.mark.parametrize('folder', FOLDERS)
def test_evaluations_show_averages_and_do_not_disturb_training(folder):
  """Weights and statistics change, and come back bit for bit."""
  with_evaluations = Host(folder, **ONLY.get(folder, {}))
  without = Host(folder, **ONLY.get(folder, {}))
  for step in range(6):
    with_evaluations.update()
    without.update()
    assert_equal(with_evaluations.shown(), with_evaluations.raw())
    if step in (3, 5):
      before = with_evaluations.raw()
      with_evaluations.prepare_for_eval()
      once = with_evaluations.shown()
      with_evaluations.prepare_for_eval()
      assert_equal(with_evaluations.shown(), once)
      assert_equal(with_evaluations.raw(), before)
      assert is_equal(once[0], before[0]) == (folder == BARE)
      assert is_equal(once[1], before[1]) == (folder in (BARE, PRIMAL))
  without.prepare_for_eval()
  assert_equal(with_evaluations.shown(), without.shown())
  assert_equal(with_evaluations.raw(), without.raw())
  # One trace of the step, whatever happened between; auto also compiles the
  # loss on its probe once, after a look at its shape.
  modes = [trace[0] for trace in with_evaluations.workload.traces]
  assert modes.count(spec.ForwardPassMode.TRAIN) == 1
  assert modes.count(spec.ForwardPassMode.EVAL) == (2 if folder == AUTO else 0)


@pytest.mark.parametrize('folder', FOLDERS)
@pytest.mark.parametrize('device_axis', [False, True])
def test_a_resumed_run_equals_the_undisturbed_one(
  folder, device_axis, tmp_path
):
  """Right after prepare_for_eval, as the benchmark saves, by its own calls."""
  changes = {
    AUTO: {'averaging_probe_every': 0.006},
    REFRESHED: {'warmup_steps': 2, 'averaging_refresh_every': 3},
  }.get(folder, {})
  host, fresh = Host(folder, **changes), Host(folder, **changes)
  for _ in range(5):
    host.update()
  host.prepare_for_eval()
  host.save(tmp_path)
  fresh.restore(tmp_path, device_axis)
  for h in (host, fresh):
    for _ in range(2):
      h.update(train_state={})
    h.prepare_for_eval()
  assert_equal(fresh.everything(), host.everything())


@pytest.mark.usefixtures('devices')
@pytest.mark.parametrize('placement', ['device', 'sharded'])
def test_several_devices(placement, tmp_path):
  """Resumed equals undisturbed; a sharded average equals a replicated one."""
  changes = {'averaging_placement': placement}
  host = Host('nadamw_lawa_jax', **changes)
  fresh, replicated = (
    Host('nadamw_lawa_jax', **changes),
    Host('nadamw_lawa_jax'),
  )
  for _ in range(4):
    host.update()
    replicated.update()
  host.prepare_for_eval()
  replicated.prepare_for_eval()
  assert_equal(host.everything(), replicated.everything())
  window = host.state[0].train.averages.parts[0].window[0]
  shard = window['out'].addressable_shards[0].data.shape
  # (window, 6, 2): four devices divide nothing of `out`; `hidden` is (4, 6).
  assert shard == window['out'].shape
  hidden = window['hidden'].addressable_shards[0].data.shape
  full = window['hidden'].shape
  assert hidden == (
    (full[0], full[1] // 4, full[2]) if placement == 'sharded' else full
  )
  assert len(host.params['hidden'].sharding.device_set) == 4
  host.save(tmp_path)
  fresh.restore(tmp_path, device_axis=True)
  for h in (host, fresh):
    h.update()
    h.prepare_for_eval()
  assert_equal(fresh.everything(), host.everything())


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


def test_a_step_uses_its_state_up_and_not_the_hosts_parameters():
  """Donated: the state's buffers are reused; init has copied the host's."""
  host = Host('nadamw_ema_jax')
  initial = jax.tree.leaves((host.params, host.model_state))
  for _ in range(2):
    before = jax.tree.leaves(host.state[0].train)
    host.update()
    assert all(leaf.is_deleted() for leaf in before)
  assert not any(leaf.is_deleted() for leaf in initial)


@pytest.mark.usefixtures('devices')
def test_several_devices_get_copies_of_the_hosts_parameters():
  """Replicating an array may give its own device the caller's buffer."""
  host = Host('nadamw_ema_jax')
  initial = jax.tree.leaves((host.params, host.model_state))
  for _ in range(2):
    host.update()
  assert not any(leaf.is_deleted() for leaf in initial)


def test_loss_is_a_mean_over_valid_examples_and_clipped():
  masked = Host('nadamw_jax', grad_clip=1e-3)
  cut = Host('nadamw_jax', grad_clip=1e-3)
  batch = next(masked.batches())
  # The model normalises by the batch: repeat rows, so that it sees the same.
  half = {k: np.concatenate([v[:8], v[:8]]) for k, v in batch.items()}
  cut.update(half)
  half['weights'] = np.float32([1] * 8 + [0] * 8)
  masked.update(half)
  # Another order of sums.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    masked.raw(),
    cut.raw(),
  )
  moment = masked.state[0].train.optimizer[0].mu
  one_minus_beta1 = masked.hyperparameters.one_minus_beta1
  norm = np.sqrt(sum(np.sum(np.square(m)) for m in jax.tree.leaves(moment)))
  assert norm / one_minus_beta1 == pytest.approx(1e-3, rel=1e-2)
  before = masked.raw()[0]
  zeros = Host('nadamw_jax', weight_decay=0.0)
  half['weights'] = np.zeros(16, np.float32)
  before = zeros.raw()[0]
  zeros.update(half)
  assert_equal(zeros.raw()[0], before)


def test_rows_are_logged_after_they_are_computed():
  rows = []

  class Logger:
    def append_scalar_metrics(self, metrics, global_step):
      rows.append((global_step, metrics))

  host = Host('nadamw_jax', label_smoothing=0.125, dropout_rate=0.25)
  host.workload.metrics_logger = Logger()
  trainer, made = host.state[1], []
  compiled = trainer._compiled_step
  trainer._compiled_step = lambda *args: (
    made.append(len(rows)) or compiled(*args)
  )
  for step in (0, 100, 101, 499, 500):
    host.step = step
    host.update()
  assert [step for step, _ in rows] == [0, 100]
  # A step is on its way before the row of the step before is waited for.
  assert made == [0, 0, 1, 2, 2]
  host.prepare_for_eval()
  assert [step for step, _ in rows] == [0, 100, 500]
  assert sorted(rows[0][1]) == ['grad_norm', 'loss']
  assert host.workload.smoothing == 0.125
  assert host.workload.traces == [(spec.ForwardPassMode.TRAIN, True, 0.25)]


def test_auto_chooses_the_lowest_loss_and_logs_it():
  rows = {}

  class Logger:
    def append_scalar_metrics(self, metrics, global_step):
      rows.update(metrics)

  host = Host(AUTO, averaging_candidates='raw, ema 0.1, polynomial 4')
  host.workload.metrics_logger = Logger()
  host.prepare_for_eval()  # without a probe or a sample: raw
  assert_equal(host.shown(), host.raw())
  for _ in range(6):
    host.update()
  host.prepare_for_eval()
  names = ['raw', 'ema 0.1', 'polynomial 4']
  losses = [rows[f'probe_loss/{name}'] for name in names]
  which = rows['averaging_choice']
  assert losses[which] == min(losses)
  assert len(set(losses)) == 3
  state, trainer = host.state
  assert_equal(host.shown(), trainer.shown(state, which))


def run(host, steps):
  for _ in range(steps):
    host.update()
  return host


def test_the_iterate_is_averaged_and_gradients_are_taken_in_between():
  """x is the explicit sum of z, and y is mu x + (1 - mu) z."""
  host, samples = Host(PRIMAL, averaging_horizon=0.02), []
  for _ in range(12):
    host.update()
    samples.append(jax.tree.map(np.float64, host.state[0].train.optimizer.z))
  host.prepare_for_eval()
  # 2 % of 500 steps.
  weights = Ema(decay=0.9).weights(12)
  x = jax.tree.map(
    lambda *zs: sum(w * z for w, z in zip(weights, zs, strict=True)), *samples
  )
  # Tens of roundings of float32.
  close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)
  jax.tree.map(close, host.params, x)
  y = jax.tree.map(lambda x, z: 0.9 * x + 0.1 * z, x, samples[-1])
  jax.tree.map(close, host.raw()[0], y)


def test_schedule_free_trains_alike_in_any_budget():
  """Another step hint changes nothing, bit for bit."""

  class Longer(jax_host.Workload):
    step_hint = 5000

  one = run(Host(REFRESHED, warmup_steps=5), 8)
  other = run(Host(REFRESHED, workload=Longer(), warmup_steps=5), 8)
  one.prepare_for_eval()
  other.prepare_for_eval()
  assert_equal(one.shown(), other.shown())
  assert_equal(one.raw(), other.raw())


@pytest.mark.parametrize('every', [1, 3])
def test_refreshed_statistics_are_those_of_forward_passes_at_the_average(every):
  host = Host(REFRESHED, averaging_refresh_every=every, warmup_steps=5)
  expected = None
  for step in range(1, 8):
    batch = next(host.batches())
    host.update(batch)
    if step == 1:  # the average begins with the statistics of y
      expected = host.raw()[1]['mean']
    host.prepare_for_eval()
    shown = host.shown()
    if step % every == 0:
      passed = batch['inputs'] @ shown[0]['hidden']
      expected = 0.9 * expected + 0.1 * passed.mean(0)
    # One program and another one, in float32.
    np.testing.assert_allclose(shown[1]['mean'], expected, rtol=1e-5, atol=1e-6)


def test_averaged_statistics_are_those_that_y_saw():
  host = Host(PRIMAL, averaging_batch_norm='averaged', averaging_horizon=0.02)
  seen = []
  for _ in range(5):
    host.update()
    seen.append(host.raw()[1]['mean'])
  host.prepare_for_eval()
  expected = np.array(Ema(decay=0.9).weights(5)) @ np.array(seen)
  np.testing.assert_allclose(host.shown()[1]['mean'], expected, rtol=1e-5)


@pytest.mark.parametrize('batch_norm', ['current', 'averaged', 'refreshed'])
def test_running_statistics_do_not_touch_training(batch_norm):
  """y and z are the same bit for bit, whichever statistics are shown."""
  plain = run(Host(PRIMAL), 5)
  host = Host(PRIMAL, averaging_batch_norm=batch_norm)
  run(host, 5)
  # Another program may round otherwise; here it does not.
  assert_equal(host.state[0].train.optimizer, plain.state[0].train.optimizer)
  assert_equal(host.raw(), plain.raw())


@pytest.mark.usefixtures('devices')
@pytest.mark.parametrize('folder', [PRIMAL, REFRESHED])
def test_training_at_an_average_on_several_devices(folder, tmp_path):
  """Replicated; a resumed run equals the undisturbed one bit for bit."""
  changes = {'warmup_steps': 5} if folder == REFRESHED else {}
  host, fresh = Host(folder, **changes), Host(folder, **changes)
  run(host, 11)
  host.prepare_for_eval()
  host.save(tmp_path)
  fresh.restore(tmp_path, device_axis=True)
  for h in (host, fresh):
    run(h, 2)
    h.prepare_for_eval()
  assert_equal(fresh.everything(), host.everything())
  for leaf in jax.tree.leaves(host.state[0].train.optimizer):
    assert leaf.sharding.is_fully_replicated
    assert len(leaf.sharding.device_set) == 4


class KeepsAxes(jax_host.Workload):
  """Returns statistics with an axis more than the first ones have."""

  def model_fn(self, *args, **kwargs):
    logits, state = super().model_fn(*args, **kwargs)
    return logits, jax.tree.map(lambda mean: mean[None], state)


@pytest.mark.parametrize('folder', ['nadamw_ema_jax', REFRESHED])
def test_statistics_may_come_back_with_axes_of_length_one(folder):
  """As from the benchmark's speech models."""
  hosts = [Host(folder, workload=w()) for w in (jax_host.Workload, KeepsAxes)]
  for host in hosts:
    run(host, 12)
    host.prepare_for_eval()
  assert_equal(hosts[1].shown(), hosts[0].shown())
  assert_equal(hosts[1].raw(), hosts[0].raw())


class Widens(jax_host.Workload):
  """Returns statistics in float32, whatever it is given."""

  def model_fn(self, *args, **kwargs):
    logits, state = super().model_fn(*args, **kwargs)
    return logits, jax.tree.map(jnp.float32, state)


@pytest.mark.parametrize('folder', ['nadamw_ema_jax', REFRESHED])
def test_statistics_keep_the_dtype_that_they_began_with(folder):
  changes = {'warmup_steps': 5} if folder == REFRESHED else {}
  host = Host(folder, workload=Widens(), **changes)
  host.model_state = jax.tree.map(jnp.bfloat16, host.model_state)
  host.state = host.submission.init_optimizer_state(
    host.workload, host.params, host.model_state, host.hyperparameters, None
  )
  host.workload.traces.clear()
  run(host, 11)
  # One trace of the step, and one of the refresh.
  assert len(host.workload.traces) == (2 if folder == REFRESHED else 1)
  assert host.model_state['mean'].dtype == jnp.bfloat16
  host.prepare_for_eval()
  assert host.model_state['mean'].dtype == jnp.bfloat16
  with pytest.raises(
    ValueError, match='dtype float32, init_model_fn one of in'
  ):
    model_state.in_nest({'n': jnp.ones(2)}, {'n': jnp.ones(2, int)})


@pytest.mark.parametrize('folder', [PRIMAL, REFRESHED])
@pytest.mark.parametrize('key', ['inputs', 'targets'])
def test_a_bad_batch_leaves_no_trace(folder, key, caplog):
  """Neither in the weights and moments nor in running statistics."""
  changes = {'warmup_steps': 5} if folder == REFRESHED else {}
  host = run(Host(folder, averaging_refresh_every=None, **changes), 9)
  before = jax.tree.map(np.array, host.state[0].train)
  # The tenth step is one with a refresh.
  bad = next(host.batches())
  bad[key] = np.full_like(bad[key], np.nan)
  host.update(bad)
  train = host.state[0].train
  assert_equal(train.params, before.params)
  assert_equal(train.model_state, before.model_state)
  assert_equal(train.optimizer.z, before.optimizer.z)
  assert_equal(train.optimizer.base_state, before.optimizer.base_state)
  if folder == PRIMAL or key == 'inputs':
    # Targets are not in the forward pass of a refresh.
    assert_equal(train.averages, before.averages)
  host.prepare_for_eval()
  x = host.shown()[0]
  assert '1 samples skipped so far' in caplog.text
  run(host, 3)
  host.prepare_for_eval()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(host.shown()))
  train = host.state[0].train
  assert int(train.optimizer.num_skipped) == 1
  assert int(train.optimizer.num_samples) == 12
  moved = jax.tree.map(lambda a, b: (a != b).any(), host.shown()[0], x)
  assert all(jax.tree.leaves(moved))


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


def test_a_momentum_beside_the_average_warns():
  with pytest.warns(UserWarning, match='nadamw has another one of 0.9. Switch'):
    Host(PRIMAL, one_minus_beta1=0.1)


@pytest.mark.parametrize(
  ('folder', 'changes', 'message'),
  [
    ('nadamw_jax', {'fused': 'compile'}, "Invalid fused='compile'. It has no"),
    (
      'nadamw_ema_jax',
      {'averaging_placement': 'cpu'},
      "Invalid averaging_placement='cpu'. Must be one of device, sharded in J",
    ),
    (
      'nadamw_lawa_jax',
      {'averaging_interpolation': 0.9},
      'Invalid averaging_interpolation=0.9. Training at an average needs one',
    ),
    (
      'nadamw_schedule_free_jax',
      {'averaging_interpolation': 0.0},
      r'averaging_interpolation=0.0. Must be in \(0, 1\) for schedule_free',
    ),
    (
      'nadamw_primal_jax',
      {'averaging_placement': 'sharded'},
      "Invalid averaging_placement='sharded'. Must be device with averaging_in",
    ),
    (
      'nadamw_ema_jax',
      {'averaging_batch_norm': 'refreshed'},
      "Invalid averaging_batch_norm='refreshed'. Must be averaged or current w",
    ),
    (
      'nadamw_ema_jax',
      {'averaging_swap': 'copy'},
      "Invalid averaging_swap='copy'. It has no effect in JAX.",
    ),
    (
      'nadamw_ema_jax',
      {'averaging_horizon': 1.5},
      r'Invalid averaging_horizon=1.5. Must be in \(0, 1\] or null.',
    ),
    (
      'nadamw_ema_jax',
      {'averaging_scheme': 'lawa'},
      "Invalid averaging_scheme='lawa'. This submission averages by 'ema'.",
    ),
  ],
)
def test_bad_points(folder, changes, message):
  with pytest.raises(ValueError, match=message):
    Host(folder, **changes)


def test_a_state_of_another_run_is_refused(tmp_path):
  host = Host('nadamw_ema_jax')
  other = Host('nadamw_ema_jax', step_hint_factor=0.5)
  for changed, message in (
    (other.state[0], 'saved with budget=250, this submission has budget=500'),
    (Host('nadamw_lawa_jax').state[0], 'its optimizer state has another struc'),
    (Host(PRIMAL).state[0], 'its optimizer state has another struc'),
    (
      jax.tree.map(lambda x: np.zeros((*np.shape(x), 3)), host.state[0]),
      r"Invalid checkpoint: .train.params\['bias'\] has shape \(3,\), this",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      host.state[1].own(changed)


def test_a_state_of_another_interpolation_is_refused():
  host, other = Host(PRIMAL), Host(PRIMAL, averaging_interpolation=0.8)
  with pytest.raises(
    ValueError, match=r'interpolation=0.8, this submission has averaging_inter'
  ):
    host.state[1].own(other.state[0])


def test_a_probe_that_cannot_be():
  host = Host(AUTO, averaging_probe_examples=17)
  with pytest.raises(
    ValueError, match=r'averaging_probe_examples=17. Must be at most the batch'
  ):
    host.update()

  class Broken(jax_host.Workload):
    def model_fn(self, *args, mode, **kwargs):
      if mode == spec.ForwardPassMode.EVAL:
        raise RuntimeError('no evaluation')
      return super().model_fn(*args, mode=mode, **kwargs)

  host = Host(AUTO, workload=Broken())
  with pytest.raises(
    ValueError, match='loss of Broken cannot be computed in evaluation mode'
  ):
    host.update()
