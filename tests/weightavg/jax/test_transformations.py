"""Averaging transformations among optax's: nesting, donation, compilation."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from jax_support import import_jax
from jax_transformations import SCHEMES, gradients, train
from jax_trees import assert_equal, params

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')


@pytest.mark.parametrize('scheme', SCHEMES)
def test_updates_pass_through(scheme):
  plain, _, _ = train(
    optax.chain(optax.sgd(0.1), SCHEMES[scheme]()), 3, params()
  )
  alone, state = params(), None
  optimizer = optax.sgd(0.1)
  state = optimizer.init(alone)
  for number in range(3):
    updates, state = optimizer.update(gradients(number), state, alone)
    alone = optax.apply_updates(alone, updates)
  # Two programs: a product and a sum may be one operation in either.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), plain, alone
  )


@pytest.mark.parametrize('scheme', SCHEMES)
def test_nested_in_any_way(scheme):
  """Find the same average in every wrapper that optax has."""
  make = SCHEMES[scheme]
  _, _, expected = train(optax.chain(optax.sgd(0.1), make()), 4, params())
  labels = {'a': 'one', 'b': {'c': 'one'}}
  wrapped = {
    'chain': optax.chain(optax.chain(optax.sgd(0.1), make()), optax.identity()),
    'named': optax.named_chain(('sgd', optax.sgd(0.1)), ('average', make())),
    'multi_transform': optax.multi_transform(
      {'one': optax.chain(optax.sgd(0.1), make())}, labels
    ),
    'apply_if_finite': optax.apply_if_finite(
      optax.chain(optax.sgd(0.1), make()), 3
    ),
  }
  for optimizer in wrapped.values():
    _, state, shown = train(optimizer, 4, params())
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), shown, expected
    )
    # In a tree of one's own, as training loops keep it.
    assert_equal(
      wj.eval_params({'step': 3, 'opt': [state, None]}, params()), shown
    )


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('prefix', [False, True])
def test_masked_leaves_are_shown_as_they_are(scheme, prefix):
  mask = {'a': True, 'b': False if prefix else {'c': False}}
  optimizer = optax.chain(optax.sgd(0.1), optax.masked(SCHEMES[scheme](), mask))
  trained, _, shown = train(optimizer, 3, params())
  _, _, expected = train(
    optax.chain(optax.sgd(0.1), SCHEMES[scheme]()), 3, params()
  )
  np.testing.assert_allclose(shown['a'], expected['a'], rtol=3e-7)
  np.testing.assert_array_equal(shown['b']['c'], trained['b']['c'])
  assert not np.array_equal(shown['b']['c'], expected['b']['c'])
  assert jax.tree.structure(shown) == jax.tree.structure(trained)


class Layer(NamedTuple):
  """Paths of leaves, `.w` and `.w_out`, of which one begins like the other."""

  w: Any
  w_out: Any


@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_mask_ends_with_the_name_of_its_attribute(scheme):
  layer = Layer(jnp.array([1.0, 2.0]), jnp.array([3.0]))
  optimizer = optax.masked(SCHEMES[scheme](), Layer(w=False, w_out=True))
  state = optimizer.init(layer)
  _, state = optimizer.update(Layer(jnp.ones(2), jnp.ones(1)), state, layer)
  shown = wj.eval_params(state, layer)
  np.testing.assert_array_equal(shown.w, [1.0, 2.0])
  np.testing.assert_array_equal(shown.w_out, [4.0])


@pytest.mark.parametrize('scheme', SCHEMES)
def test_states_of_several_runs_are_shown_run_by_run(scheme):
  """Outside of vmap the leading axis would be taken for one of the weights."""
  optimizer = optax.chain(optax.sgd(0.5), SCHEMES[scheme]())
  runs = jnp.arange(1.0, 4.0)[:, None] * jnp.ones((3, 1))
  state = jax.vmap(optimizer.init)(runs)
  updates, state = jax.vmap(optimizer.update)(runs, state, runs)
  with pytest.raises(ValueError, match=r'shape \(3,\).*jax.vmap\(eval_params'):
    wj.eval_params(state, runs)
  shown = jax.vmap(wj.eval_params)(state, runs)
  np.testing.assert_array_equal(shown, runs + updates)


def test_a_state_in_a_flax_optimizer_is_shown_without_its_wrappers():
  nnx = import_jax('flax.nnx')
  if not hasattr(nnx, 'as_pure'):
    pytest.skip('flax before 0.12')
  model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(
    model, optax.chain(optax.sgd(0.1), wj.ema_weights(0.5)), wrt=nnx.Param
  )
  samples = []
  for _ in range(2):
    grads = nnx.grad(lambda model: model(jnp.ones((1, 2))).sum())(model)
    optimizer.update(model, grads)
    samples.append(np.asarray(model.kernel[...]))
  params = nnx.state(model, nnx.Param)
  with pytest.raises(ValueError, match=r'num_samples is no array.*as_pure'):
    wj.eval_params(optimizer.opt_state, params)
  average = wj.eval_params(
    nnx.as_pure(optimizer.opt_state), nnx.as_pure(params)
  )
  nnx.update(model, average)
  np.testing.assert_allclose(
    model.kernel[...], (samples[0] + 2 * samples[1]) / 3, rtol=1e-6
  )


@pytest.mark.parametrize('scheme', SCHEMES)
def test_none_leaves(scheme):
  """As from equinox's partition or a model without biases."""
  averaging = SCHEMES[scheme]()
  tree = {'w': jnp.array([1.0]), 'bias': None}
  state = averaging.init(tree)
  updates = {'w': jnp.array([2.0]), 'bias': None}
  out, state = averaging.update(updates, state, tree)
  assert out is updates
  shown = wj.eval_params(state, tree)
  assert shown['bias'] is None
  assert float(shown['w'][0]) == 3.0


@pytest.mark.parametrize('scheme', SCHEMES)
def test_inject_hyperparams(scheme):
  factory, kwargs, static, changed = {
    'ema': (wj.ema_weights, {'decay': 0.5}, (), ('decay', 0.0)),
    'lawa': (wj.lawa_weights, {'window': 2}, 'window', ('every', 1000)),
    'polynomial': (wj.polynomial_weights, {'power': 1.0}, (), ('power', 1e9)),
  }[scheme]
  injected = optax.inject_hyperparams(factory, static_args=static)(**kwargs)
  _, _, expected = train(
    optax.chain(optax.sgd(0.1), factory(**kwargs)), 3, params()
  )
  trained, state, shown = train(
    optax.chain(optax.sgd(0.1), injected), 3, params()
  )
  jax.tree.map(
    # decay and power come as float32.
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    shown,
    expected,
  )
  # A changed hyperparameter acts: the average becomes the latest sample, or
  # no sample is taken any more.
  name, value = changed
  hyperparams = state[1].hyperparams
  assert name in hyperparams
  hyperparams[name] = jnp.asarray(value, hyperparams[name].dtype)
  _, inner = injected.update(
    jax.tree.map(jnp.ones_like, trained), state[1], trained
  )
  after = wj.eval_params(inner, trained)
  one_more = jax.tree.map(lambda p: p + 1.0, trained)
  expected = shown if scheme == 'lawa' else one_more
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, expected
  )


@pytest.mark.parametrize('scheme', SCHEMES)
def test_multi_steps(scheme):
  """Inside MultiSteps only real steps count; behind it, `every` skips."""
  make = SCHEMES[scheme]
  inside = optax.MultiSteps(optax.chain(optax.sgd(0.1), make()), 2)
  trained, state, shown = train(inside.gradient_transformation(), 6, params())
  (average,) = wj.averaging_states(state)
  assert int(average.count) == int(average.num_samples) == 3
  factory = {
    'ema': lambda: wj.ema_weights(0.5, every=2),
    'lawa': lambda: wj.lawa_weights(2, every=2),
    'polynomial': lambda: wj.polynomial_weights(1.0, every=2),
  }[scheme]
  behind = optax.chain(
    optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), factory()
  )
  trained_behind, _, shown_behind = train(behind, 6, params())
  for a, b in ((trained, trained_behind), (shown, shown_behind)):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=3e-7), a, b)


@pytest.mark.skipif(
  optax.__version__ == '0.2.2', reason='optax 0.2.2 calls what jax 0.6 removed'
)
@pytest.mark.parametrize('scheme', SCHEMES)
def test_tree_map_params_reaches_the_average(scheme):
  optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), SCHEMES[scheme]())
  state = optimizer.init(params())
  ones = optax.tree_utils.tree_map_params(
    optimizer, lambda leaf: jnp.ones_like(leaf), state
  )
  (average,) = wj.averaging_states(ones)
  assert all((leaf == 1).all() for leaf in jax.tree.leaves(average[3]))
  assert int(average.count) == 0


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('every', [1, 3])
def test_parameters_and_state_may_be_donated(scheme, every):
  """No buffer is shared: donation of both would fail or warn otherwise."""
  factory = {
    'ema': lambda: wj.ema_weights(0.5, every=every),
    'lawa': lambda: wj.lawa_weights(2, every=every),
    'polynomial': lambda: wj.polynomial_weights(1.0, every=every),
  }[scheme]
  optimizer = optax.chain(optax.sgd(0.1), factory())

  def step(params, state, number):
    updates, state = optimizer.update(gradients(number), state, params)
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
    assert all(leaf.is_deleted() for leaf in old)
  # The shown weights survive the donation of what they were made from.
  donating(trained, state, 4)
  assert_equal(shown, wj.eval_params(kept_state, kept))


@pytest.mark.parametrize('scheme', SCHEMES)
def test_every_step_runs_the_same_program(scheme):
  """Sampled or not, before and after the window is full, skipped or not."""
  factory = {
    'ema': lambda: wj.ema_weights(0.5, every=2, start=3),
    'lawa': lambda: wj.lawa_weights(2, every=2, start=3),
    'polynomial': lambda: wj.polynomial_weights(1.0, every=2, start=3),
  }[scheme]
  optimizer = optax.chain(optax.sgd(0.1), factory())
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
  assert int(wj.averaging_states(state)[0].num_samples) == 4


def test_init_and_update_work_on_abstract_values():
  for make in SCHEMES.values():
    averaging = make()
    state = jax.eval_shape(averaging.init, params())
    _, after = jax.eval_shape(averaging.update, params(), state, params())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
      lambda x: (x.shape, x.dtype), state
    )


def test_several_averages_are_found_in_order():
  optimizer = optax.chain(
    optax.sgd(0.1),
    wj.ema_weights(0.5),
    optax.masked(wj.lawa_weights(2), {'a': True, 'b': False}),
    wj.polynomial_weights(),
  )
  state = optimizer.init(params())
  kinds = [type(s).__name__ for s in wj.averaging_states(state)]
  assert kinds == [
    'EmaWeightsState',
    'LawaWeightsState',
    'PolynomialWeightsState',
  ]
  with pytest.raises(
    ValueError, match=r'holds 3 averaging states \(ema_weights, lawa_weights'
  ):
    wj.eval_params(state, params())


@pytest.mark.parametrize('scheme', SCHEMES)
def test_numbers_are_observed_as_arrays(scheme):
  averaging = SCHEMES[scheme]()
  tree = {'w': jnp.ones(2), 'temperature': 1.5}
  state = averaging.init(tree)
  for _ in range(2):
    state = wj.observe(averaging, tree, state)
  shown = wj.eval_params(state, tree)
  assert float(shown['temperature']) == 1.5
