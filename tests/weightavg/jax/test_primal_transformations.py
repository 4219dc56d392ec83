"""Training at an average among optax's transformations: nesting, donation."""

import functools

import pytest
from jax_primal_runs import assert_close, build, gradients, train
from jax_support import import_jax
from jax_trees import assert_equal, params

from weightavg import Ema, ScheduleFree

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')


def test_nested_in_any_way():
  _, _, expected = train(build(), 4, params())
  labels = {'a': 'one', 'b': {'c': 'one'}}
  wrapped = (
    optax.chain(optax.clip_by_global_norm(1e9), build()),
    optax.named_chain(('clip', optax.identity()), ('primal', build())),
    optax.multi_transform({'one': build()}, labels),
    optax.apply_if_finite(build(), 3),
  )
  for optimizer in wrapped:
    _, state, seen = train(optimizer, 4, params())
    # Other programs: a product and a sum may be one operation in either.
    assert_close(seen, expected, rtol=1e-6)
    assert len(wj.averaging_states({'opt': [state, None]})) == 1


def test_averages_inside_and_behind_it_are_found():
  """x first, then averages of z inside its base; those of y come behind."""
  inside = optax.chain(optax.sgd(0.1), wj.ema_weights(0.0))
  optimizer = optax.chain(build(inside), wj.polynomial_weights(0.0))
  p = params()
  state = optimizer.init(p)
  for number in range(3):
    updates, state = optimizer.update(gradients(p, number), state, p)
    p = optax.apply_updates(p, updates)
  found = wj.averaging_states(state)
  names = [type(s).__name__ for s in found]
  assert names == [
    'PrimalAverageState',
    'EmaWeightsState',
    'PolynomialWeightsState',
  ]
  assert_equal(wj.eval_params(found[1], p), found[0].z)
  wj.eval_params(found[0], p)
  with pytest.raises(ValueError, match=r'3 averaging states \(primal_average'):
    wj.eval_params(state, p)


def test_masked_leaves_train_as_they_are():
  mask = {'a': True, 'b': {'c': False}}
  optimizer = optax.chain(
    optax.masked(build(), mask),
    optax.masked(optax.sgd(0.1), {'a': False, 'b': {'c': True}}),
  )
  trained, _, seen = train(optimizer, 3, params())
  _, _, expected = train(build(), 3, params())
  plain, _, _ = train(
    optax.chain(optax.sgd(0.1), wj.ema_weights(0.5)), 3, params()
  )
  shown = seen[-1][1]
  assert_close(shown['a'], expected[-1][1]['a'], rtol=3e-7)
  assert_equal(shown['b'], trained['b'])
  assert_close(trained['b'], plain['b'], rtol=3e-7)
  assert jax.tree.structure(shown) == jax.tree.structure(trained)


def test_none_leaves():
  tree = {'w': jnp.array([1.0]), 'bias': None}
  optimizer = build(optax.sgd(1.0))
  state = optimizer.init(tree)
  updates, state = optimizer.update(
    {'w': jnp.array([-2.0]), 'bias': None}, state, tree
  )
  assert updates['bias'] is None
  shown = wj.eval_params(state, optax.apply_updates(tree, updates))
  assert shown['bias'] is None
  assert float(shown['w'][0]) == 3.0


def test_integers_and_random_keys_are_not_averaged():
  tree = {'w': jnp.array([1.0]), 'steps': jnp.array(3)}
  optimizer = build(optax.sgd(-1.0))
  state = optimizer.init(tree)
  # Steps of the base optimizer, which here adds gradients.
  gradient = {'w': jnp.array([2.0]), 'steps': jnp.array(4)}
  updates, state = optimizer.update(gradient, state, tree)
  shown = wj.eval_params(state, optax.apply_updates(tree, updates))
  assert int(shown['steps']) == 7
  assert shown['steps'].dtype == tree['steps'].dtype
  assert float(shown['w'][0]) == 3.0
  key = jax.random.key(0)
  kept = wj.eval_params(optimizer.init({'key': key}), {'key': key})['key']
  assert (jax.random.key_data(kept) == jax.random.key_data(key)).all()


def test_moments_of_integers_may_change_their_dtype():
  """optax's adam alone turns them into floats in its first step."""
  optimizer = wj.primal_average(optax.adam(0.1, b1=0.0), Ema(decay=0.9))
  start = {'w': jnp.ones(2), 'i': jnp.arange(2)}
  state, found = optimizer.init(start), start
  for value in (float('nan'), 1.0):
    steps = {'w': jnp.full(2, value), 'i': jnp.zeros(2, jnp.int32)}
    updates, state = optimizer.update(steps, state, found)
    found = optax.apply_updates(found, updates)
    assert jnp.array_equal(found['i'], start['i'])
    assert jnp.array_equal(found['w'], start['w']) == (value != 1.0)


def test_multi_steps():
  """Only complete steps count; between them y stays."""
  inside = optax.MultiSteps(build(), 2).gradient_transformation()
  trained, state, _ = train(inside, 6, params())
  (found,) = wj.averaging_states(state)
  assert int(found.count) == int(found.num_samples) == 3
  p = params()
  alone = build()
  other = alone.init(p)
  for number in (0, 2, 4):
    pair = [gradients(p, number), gradients(p, number + 1)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *pair)
    updates, other = alone.update(mean, other, p)
    p = optax.apply_updates(p, updates)
  assert_close(trained, p, rtol=1e-6)


def test_injected_interpolation_may_change_during_training():
  """x carries over to another mu; y moves."""
  injected = optax.inject_hyperparams(
    wj.primal_average,
    static_args=('base_optimizer', 'scheme', 'accumulator_dtype'),
  )(optax.sgd(0.1), Ema(0.75), 0.9)
  p, state, seen = train(injected, 3, params())
  assert_close(seen, train(build(), 3, params())[2], rtol=1e-6)
  before = seen[-1][1]
  (old,) = wj.averaging_states(state)
  state.hyperparams['interpolation'] = jnp.float32(0.5)
  zeros = jax.tree.map(jnp.zeros_like, p)
  updates, state = injected.update(zeros, state, p)
  p = optax.apply_updates(p, updates)
  (new,) = wj.averaging_states(state)
  x = wj.eval_params(state, p)
  expected = jax.tree.map(
    lambda x, z: x + new.coefficient * (z - x), before, old.z
  )
  assert_close(x, expected, rtol=1e-6)
  y = jax.tree.map(lambda x, z: 0.5 * x + 0.5 * z, x, new.z)
  assert_close(p, y, rtol=1e-6)


@pytest.mark.skipif(
  optax.__version__ == '0.2.2', reason='optax 0.2.2 calls what jax 0.6 removed'
)
def test_tree_map_params_reaches_z_and_the_base():
  optimizer = build(optax.sgd(0.1, momentum=0.9))
  ones = optax.tree_utils.tree_map_params(
    optimizer, lambda leaf: jnp.ones_like(leaf), optimizer.init(params())
  )
  assert all((leaf == 1).all() for leaf in jax.tree.leaves(ones.z))
  trace = jax.tree.leaves(ones.base_state)
  assert all((leaf == 1).all() for leaf in trace if leaf.ndim)
  assert int(ones.count) == 0


@pytest.mark.parametrize('accumulator_dtype', [None, jnp.float32])
def test_parameters_and_state_may_be_donated(accumulator_dtype):
  optimizer = build(wj.nadamw(0.1, b1=0.0), accumulator_dtype=accumulator_dtype)

  def step(params, state, number):
    updates, state = optimizer.update(gradients(params, number), state, params)
    return optax.apply_updates(params, updates), state

  donating = jax.jit(step, donate_argnums=(0, 1))
  trained, state = params(), optimizer.init(params())
  kept, kept_state = params(), optimizer.init(params())
  keeping = jax.jit(step)
  for number in range(4):
    old = jax.tree.leaves((trained, state))
    trained, state = donating(trained, state, number)
    kept, kept_state = keeping(kept, kept_state, number)
    shown = wj.eval_params(state, trained)
    # A scalar that a step does not read is no argument of its program.
    assert all(leaf.is_deleted() for leaf in old if leaf.ndim)
  donating(trained, state, 4)
  assert_equal(shown, wj.eval_params(kept_state, kept))


@pytest.mark.parametrize('name', ['prodigy', 'mechanize', 'cocob'])
@pytest.mark.parametrize('is_compiled', [False, True])
def test_an_optimizer_that_keeps_its_first_parameters_may_be_donated(
  name, is_compiled
):
  """All buffers differ, also those of leaves that are not averaged."""
  make = getattr(optax.contrib, name)
  base = make(optax.sgd(0.1)) if name == 'mechanize' else make()
  start = {'w': jnp.ones(3), 'steps': jnp.arange(3)}
  init = build(base).init
  state = (jax.jit(init) if is_compiled else init)(start)
  buffers = [
    leaf.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves((start, state))
    if isinstance(leaf, jax.Array)
  ]
  assert len({*buffers}) == len(buffers)


def test_an_injected_interpolation_may_be_donated():
  optimizer = optax.inject_hyperparams(
    wj.primal_average,
    static_args=('base_optimizer', 'scheme', 'accumulator_dtype'),
  )(optax.sgd(0.1), Ema(0.5))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, number):
    updates, state = optimizer.update(gradients(params, number), state, params)
    return optax.apply_updates(params, updates), state

  trained, state = params(), optimizer.init(params())
  for number in range(3):
    trained, state = step(trained, state, number)
  assert int(state.count) == 3


def test_every_step_runs_the_same_program():
  """Sampled or not, before the first sample or after it, skipped or not."""
  optimizer = build(every=2, start=3)
  traces = []

  @jax.jit
  def step(params, state, gradients):
    traces.append(1)
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    return params, state, wj.eval_params(state, params)

  trained, state = params(), optimizer.init(params())
  with jax.transfer_guard('disallow'):
    for _ in range(10):
      trained, state, _ = step(trained, state, trained)
  assert len(traces) == 1
  assert int(state.num_samples) == 4


def test_the_state_shares_no_buffer_with_an_array_of_the_interpolation():
  mu = jnp.float32(0.9)
  optimizer = wj.primal_average(
    optax.sgd(0.1), Ema(0.5), mu, skip_nonfinite=False
  )
  p = params()
  _, state = optimizer.update(gradients(p, 0), optimizer.init(p), p)
  jax.jit(lambda s: s.count + 1, donate_argnums=0)(state)
  jax.tree.map(lambda leaf: leaf.delete(), state)
  assert float(mu) == pytest.approx(0.9)


def test_a_rate_of_zero_makes_no_nan_on_the_way():
  rate = optax.linear_schedule(0.0, 0.1, 5)
  optimizer = wj.primal_average(
    optax.sgd(rate), ScheduleFree(), learning_rate=rate
  )
  p = params()
  state = optimizer.init(p)
  with jax.debug_nans(True):
    for number in range(3):
      _, state = optimizer.update(gradients(p, number), state, p)
  assert int(state.num_samples) == 3
