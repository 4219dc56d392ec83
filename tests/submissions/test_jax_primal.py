"""The submissions in JAX that train at an average; running statistics."""

import functools

import numpy as np
import pytest
from jax_submissions import PRIMAL, REFRESHED, Host, run
from jax_support import import_jax
from jax_trees import assert_equal

from weightavg.schemes import Ema

jax, jnp = import_jax('jax', 'jax.numpy')
jax_host = import_jax('jax_host')
model_state = import_jax('weightavg.jax.model_state')


def test_parameters_of_16_bits_have_an_average_of_32(monkeypatch):
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), jax_host.model())
  monkeypatch.setattr(jax_host, 'model', lambda: narrow)
  host = run(Host(PRIMAL), 12)
  kept = host.state[0].train.optimizer.x
  assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype('float32')}
  host.prepare_for_eval()
  for leaf, x in zip(
    jax.tree.leaves(host.params), jax.tree.leaves(kept), strict=True
  ):
    assert leaf.dtype == jnp.bfloat16
    np.testing.assert_array_equal(leaf, x.astype(jnp.bfloat16))


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
@pytest.mark.parametrize(
  'folder', [pytest.param(PRIMAL, marks=pytest.mark.slow), REFRESHED]
)
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


@pytest.mark.parametrize(
  'folder', [pytest.param('nadamw_ema_jax', marks=pytest.mark.slow), REFRESHED]
)
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
