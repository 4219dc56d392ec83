"""Averages of parameters that are sharded over simulated devices."""

import numpy as np
import pytest
from jax_support import import_jax

from weightavg import Polynomial

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')
sharding = import_jax('jax.sharding')


@pytest.fixture
def placed(devices):
  """A matrix over both axes of a mesh, a vector over one, a bias on all."""
  mesh = sharding.Mesh(np.array(devices).reshape(2, 2), ('data', 'model'))
  specs = {'matrix': ('data', 'model'), 'vector': ('model',), 'bias': ()}
  shapes = {'matrix': (4, 6), 'vector': (8,), 'bias': (3,)}
  rng = np.random.default_rng(0)
  return {
    name: jax.device_put(
      rng.normal(size=shapes[name]).astype(np.float32),
      sharding.NamedSharding(mesh, sharding.PartitionSpec(*spec)),
    )
    for name, spec in specs.items()
  }


@pytest.mark.parametrize('every', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_averages_keep_the_sharding_of_the_parameters(placed, every):
  """From init on; values are those of one device, bit for bit."""
  optimizer = optax.chain(
    optax.sgd(0.1), wj.ema_weights(0.5, every), wj.lawa_weights(3, every)
  )

  def step(params, state):
    updates, state = optimizer.update(params, state, params)
    return optax.apply_updates(params, updates), state

  def check(params, state):
    ema, lawa = wj.averaging_states(state)
    for name, value in params.items():
      assert ema.ema[name].sharding.is_equivalent_to(value.sharding, value.ndim)
      window = lawa.window[name]
      spec = sharding.PartitionSpec(None, *value.sharding.spec)
      expected = sharding.NamedSharding(value.sharding.mesh, spec)
      assert window.sharding.is_equivalent_to(expected, window.ndim), name
    for single in (ema, lawa):
      shown = jax.jit(wj.eval_params)(single, params)
      for name, value in params.items():
        assert shown[name].sharding.is_equivalent_to(value.sharding, value.ndim)

  whole = {name: jnp.asarray(np.asarray(p)) for name, p in placed.items()}
  sharded, sharded_state = placed, optimizer.init(placed)
  check(sharded, sharded_state)
  whole_state = optimizer.init(whole)
  donating = jax.jit(step, donate_argnums=(0, 1))
  alone = jax.jit(step)
  for _ in range(4):
    sharded, sharded_state = donating(sharded, sharded_state)
    whole, whole_state = alone(whole, whole_state)
  check(sharded, sharded_state)
  for a, b in zip(
    jax.tree.leaves(sharded_state), jax.tree.leaves(whole_state), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_one_shard_that_is_not_finite_keeps_the_whole_sample_out(placed):
  averaging = wj.ema_weights(0.5)
  state = averaging.init(placed)
  observe = jax.jit(lambda values, state: wj.observe(averaging, values, state))
  state = observe(placed, state)
  poisoned = {**placed, 'vector': placed['vector'].at[7].set(jnp.nan)}
  after = observe(poisoned, state)
  assert int(after.num_skipped) == 1
  jax.tree.map(np.testing.assert_array_equal, after.ema, state.ema)


@pytest.mark.parametrize(
  'accumulator_dtype',
  [pytest.param(None, marks=pytest.mark.slow), jnp.float32],
)
def test_training_at_an_average_keeps_the_sharding_of_the_parameters(
  placed, accumulator_dtype
):
  """z, x and y; values are those of one device but for rounding."""
  optimizer = wj.primal_average(
    wj.nadamw(0.1, b1=0.0),
    Polynomial(3.0),
    accumulator_dtype=accumulator_dtype,
  )

  def step(params, state):
    updates, state = optimizer.update(params, state, params)
    return optax.apply_updates(params, updates), state

  shardings = {name: value.sharding for name, value in placed.items()}
  whole = {name: jnp.asarray(np.asarray(p)) for name, p in placed.items()}
  sharded, state = placed, optimizer.init(placed)
  whole_state = optimizer.init(whole)
  donating, alone = jax.jit(step, donate_argnums=(0, 1)), jax.jit(step)
  for _ in range(4):
    sharded, state = donating(sharded, state)
    whole, whole_state = alone(whole, whole_state)
  shown = jax.jit(wj.eval_params)(state, sharded)
  x = shown if accumulator_dtype is None else state.x
  for name, value in sharded.items():
    for tree in (state.z, x, shown, sharded):
      assert tree[name].sharding.is_equivalent_to(shardings[name], value.ndim)
  for a, b in zip(
    jax.tree.leaves((sharded, state)),
    jax.tree.leaves((whole, whole_state)),
    strict=True,
  ):
    # Other programs: a product and a sum may be one operation in either.
    np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-7)


def test_training_at_an_average_with_explicit_shardings(devices):
  """A sharding that is part of a type must be that of both branches."""
  mesh = sharding.Mesh(
    np.array(devices), ('x',), axis_types=(sharding.AxisType.Explicit,)
  )
  spec = sharding.NamedSharding(mesh, sharding.PartitionSpec('x'))
  optimizer = wj.primal_average(optax.sgd(0.5), Polynomial(0.0), 0.5)
  params = jax.device_put(np.full(8, 8.0, np.float32), spec)
  gradients = jax.device_put(np.full(8, 2.0, np.float32), spec)
  with jax.set_mesh(mesh):
    state = optimizer.init(params)
    for gradient in (gradients, gradients * jnp.inf, gradients):  # z = 7, 6
      updates, state = jax.jit(optimizer.update)(gradient, state, params)
      params = optax.apply_updates(params, updates)
    average = wj.eval_params(state, params)
  assert int(state.num_skipped) == 1
  np.testing.assert_array_equal(average, np.full(8, 6.5, np.float32))
  assert average.sharding.is_equivalent_to(spec, 1)
