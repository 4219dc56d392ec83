"""Training at an average in JAX: arithmetic, PyTorch's and optax's, faults."""

import functools

import numpy as np
import pytest
import torch
from jax_support import import_jax

from weightavg import Ema, Lawa, Polynomial, ScheduleFree
from weightavg.learning_rate import factor
from weightavg.pytorch import Averager, NadamW
from weightavg.schemes import Auto, Raw, Recursive

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')
coefficients = import_jax('weightavg.jax.coefficients')

SCHEMES = {
  'ema': Ema(0.75),
  'polynomial': Polynomial(3.0),
  'polyak': Polynomial(0.0),
  'schedule_free': ScheduleFree(2.0),
}
PARAMS = {'a': np.float32([1.0, 2.0]), 'b': {'c': np.float32([[3.0], [4.0]])}}


def params(dtype=None):
  return jax.tree.map(lambda p: jnp.array(p, dtype), PARAMS)


def gradients(y, step):
  return jax.tree.map(lambda p: jnp.sin(3 * p + step), y)


def train(optimizer, steps, params):
  """Train by gradients at the parameters; y, x and z after every step."""

  @jax.jit
  def step(params, state, number):
    updates, state = optimizer.update(gradients(params, number), state, params)
    return optax.apply_updates(params, updates), state

  state, seen = optimizer.init(params), []
  for number in range(steps):
    params, state = step(params, state, number)
    seen.append((params, wj.eval_params(state, params)))
  return params, state, seen


def assert_close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


# Arithmetic.


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('accumulator_dtype', [None, 'float64'])
def test_literal_three_steps(accumulator_dtype):
  # Polyak's mean of z, mu = 1/2, steps of -1, -2, -4 from 8:
  # z = 7, 5, 1; x = 7, 6, 13/3; y = 7, 5.5, 8/3.
  optimizer = wj.primal_average(
    optax.sgd(1.0),
    Polynomial(0.0),
    0.5,
    accumulator_dtype=accumulator_dtype,
  )
  p = jnp.array(8.0)
  state, seen = optimizer.init(p), []
  for gradient in (1.0, 2.0, 4.0):
    updates, state = optimizer.update(jnp.array(gradient), state, p)
    p = optax.apply_updates(p, updates)
    seen += [float(p), float(state.z), float(wj.eval_params(state, p))]
  expected = [7, 7, 7, 5.5, 5, 6, 8 / 3, 1, 13 / 3]
  assert seen == pytest.approx(expected, rel=1e-14)


@pytest.mark.usefixtures('x64')
def test_schedule_free_weighs_by_the_largest_learning_rate():
  # Weights 1, 4, 4, 16 by the rates 1, 2, 1, 4; z = -1, -3, -4, -8.
  rates = jnp.array([1.0, 2.0, 1.0, 4.0])
  optimizer = wj.primal_average(
    optax.sgd(lambda count: rates[count]),
    ScheduleFree(),
    0.5,
    learning_rate=lambda count: rates[count],
  )
  p = jnp.array(0.0)
  state = optimizer.init(p)
  for _ in rates:
    updates, state = optimizer.update(jnp.array(1.0), state, p)
    p = optax.apply_updates(p, updates)
  expected = -(1 + 4 * 3 + 4 * 4 + 16 * 8) / 25
  assert float(wj.eval_params(state, p)) == pytest.approx(expected, rel=1e-14)
  assert float(state.weight_ratio) == 25 / 16


def test_a_step_that_was_left_out_has_no_learning_rate():
  """The base optimizer's counter stays, and so does that of the weights."""
  rates = jnp.array([0.1, 0.2, 0.4, 0.8])
  optimizer = wj.primal_average(
    optax.sgd(lambda count: rates[count]),
    ScheduleFree(0.0),
    0.5,
    learning_rate=lambda count: rates[count],
  )
  p = jnp.array(0.0)
  state = optimizer.init(p)
  for gradient in (1.0, np.nan, 1.0):
    before = state.z
    updates, state = optimizer.update(jnp.array(gradient), state, p)
    p = optax.apply_updates(p, updates)
  assert float(before - state.z) == pytest.approx(0.2)
  assert float(state.largest_rate) == pytest.approx(0.2)
  assert int(state.num_made) == 2


@pytest.mark.parametrize('power', [0.0, 3.5, 19.0, 50.0])
def test_schedule_free_weights_of_high_powers_stay_finite(power):
  """In float32 k^19 is infinite from k = 107 on."""
  samples = 5000
  optimizer = wj.primal_average(optax.sgd(1e-3), ScheduleFree(power), 0.9)
  p = jnp.array(0.0)

  def step(carry, _):
    p, state = carry
    updates, state = optimizer.update(jnp.array(1.0), state, p)
    return (optax.apply_updates(p, updates), state), None

  (p, state), _ = jax.lax.scan(
    step, (p, optimizer.init(p)), None, length=samples
  )
  assert jnp.isfinite(p)
  assert int(state.num_samples) == samples
  expected = ScheduleFree(power).weights(samples)[-1]
  # A quotient near 1 is rounded to 6e-8, and remembered for 1 / c samples.
  assert float(state.coefficient) == pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures('x64')
def test_weights_decay_from_the_iterate():
  """From z = 8, 4, 2, not from y."""
  base = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0))
  optimizer = wj.primal_average(base, Polynomial(0.0), 0.5)
  p = jnp.array(16.0)
  state = optimizer.init(p)
  for z in (8.0, 4.0, 2.0):
    updates, state = optimizer.update(jnp.array(0.0), state, p)
    p = optax.apply_updates(p, updates)
    assert float(state.z) == z
  # x = 14/3.
  assert float(p) == pytest.approx((14 / 3 + 2) / 2, rel=1e-14)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize(('every', 'start'), [(1, 0), (3, 0), (1, 4), (2, 5)])
@pytest.mark.parametrize('scheme', SCHEMES)
def test_equal_to_pytorch_over_100_steps(scheme, every, start):
  """1e-9: the same operations in float64, some in another order.

  Gradients depend on y: an error would grow from step to step.
  """
  lr, betas, decay = 0.02, (0.0, 0.95), 0.1
  initial = np.random.default_rng(0).normal(size=9)
  schedule = wj.warmup_schedule(lr, 100, warmup_factor=0.1)
  weighs = scheme == 'schedule_free'
  optimizer = wj.primal_average(
    wj.nadamw(schedule, *betas, weight_decay=decay),
    SCHEMES[scheme],
    0.9,
    learning_rate=schedule if weighs else None,
    every=every,
    start=start,
  )
  _, state, seen = train(optimizer, 100, jnp.asarray(initial))
  p = torch.nn.Parameter(torch.from_numpy(initial.copy()))
  reference = NadamW([p], lr=lr, betas=betas, weight_decay=decay)
  averager = Averager(
    [('p', p)], SCHEMES[scheme], interpolation=0.9, every=every, start=start
  )
  for step, (y, x) in enumerate(seen):
    reference.param_groups[0]['lr'] = lr * factor(step, 100, 0.1)
    p.grad = torch.sin(3 * p.detach() + step)
    averager.before_step(reference)
    reference.step()
    averager.update()
    np.testing.assert_allclose(y, p.detach().numpy(), rtol=0, atol=1e-9)
    with averager.evaluating():
      np.testing.assert_allclose(x, p.detach().numpy(), rtol=0, atol=1e-9)
  assert int(state.num_samples) == averager.samples


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('warmup', [0, 5])
@pytest.mark.parametrize('base', ['sgd', 'adam'])
def test_equal_to_optaxs_schedule_free(base, warmup):
  """1e-12: other formulas for x and y, 30 steps in float64.

  optax weighs the step of number s by the learning rate at s + 1; without
  weight decay, which acts on y there.
  """
  schedule = optax.linear_schedule(0.01, 0.05, warmup or 1)
  make = {
    'sgd': lambda: optax.sgd(schedule),
    'adam': lambda: optax.adam(schedule, b1=0.0),
  }[base]
  ours = wj.primal_average(
    make(),
    ScheduleFree(),
    0.9,
    learning_rate=lambda count: schedule(count + 1),
  )
  theirs = optax.contrib.schedule_free(make(), schedule, b1=0.9)
  p = q = params(jnp.float64)
  state, other = ours.init(p), theirs.init(q)
  steps = [jax.jit(o.update) for o in (ours, theirs)]
  for number in range(30):
    updates, state = steps[0](gradients(p, number), state, p)
    p = optax.apply_updates(p, updates)
    updates, other = steps[1](gradients(q, number), other, q)
    q = optax.apply_updates(q, updates)
    assert_close(p, q, rtol=0, atol=1e-12)
    assert_close(
      wj.eval_params(state, p),
      optax.contrib.schedule_free_eval_params(other, q),
      rtol=0,
      atol=1e-12,
    )


@pytest.mark.parametrize(
  ('scheme', 'watching'),
  [
    ('ema', lambda: wj.ema_weights(0.75, 2, 3)),
    ('polynomial', lambda: wj.polynomial_weights(3.0, 2, 3)),
  ],
)
def test_without_interpolation_it_is_an_average_that_watches(scheme, watching):
  """Bit for bit."""
  base = wj.nadamw(0.05)
  none = wj.primal_average(base, SCHEMES[scheme], 0.0, every=2, start=3)
  _, state, seen = train(none, 7, params())
  _, other, expected = train(optax.chain(base, watching()), 7, params())
  assert_equal((state, seen), (other, expected))


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize(
  ('scheme', 'watching'),
  [
    ('ema', lambda: wj.ema_weights(0.75, 2, 3)),
    ('polynomial', lambda: wj.polynomial_weights(3.0, 2, 3)),
  ],
)
def test_a_small_interpolation_approaches_it(scheme, watching):
  """1e-7: y is 1e-9 of x away from z, and gradients enlarge that."""
  base = wj.nadamw(0.05)
  little = wj.primal_average(
    base,
    SCHEMES[scheme],
    1e-9,
    every=2,
    start=3,
    accumulator_dtype=jnp.float64,
  )
  _, _, seen = train(little, 9, params(jnp.float64))
  _, _, expected = train(optax.chain(base, watching()), 9, params(jnp.float64))
  assert_close(seen, expected, rtol=0, atol=1e-7)


def test_a_function_gives_the_coefficients():
  own = wj.primal_average(optax.sgd(0.1), lambda k: 1.0 / k)
  polyak = wj.primal_average(optax.sgd(0.1), Polynomial(0.0))
  assert_equal(train(own, 5, params())[2], train(polyak, 5, params())[2])


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('decay', [0.0, 0.5, 1 - 1e-6])
def test_the_share_of_a_horizon_is_its_decay(decay):
  numbers = jnp.arange(1.0, 50.0)
  expected = [coefficients.of_ema(decay, k) for k in numbers]
  shown = [coefficients.of_share(jnp.array(1 - decay), k) for k in numbers]
  np.testing.assert_allclose(shown, expected, rtol=1e-9)
  # float32, as the compiled step of a submission computes it.
  narrow = [
    coefficients.of_share(jnp.float32(1 - decay), k.astype(jnp.float32))
    for k in numbers
  ]
  np.testing.assert_allclose(narrow, expected, rtol=1e-6)


# What is stored.


@pytest.mark.parametrize('mu', [0.1, 0.5, 0.98])
@pytest.mark.parametrize('accumulator_dtype', [None, jnp.float32])
def test_in_float32_the_average_is_that_of_the_samples(mu, accumulator_dtype):
  optimizer = wj.primal_average(
    wj.nadamw(0.05, b1=0.0),
    Ema(0.75),
    mu,
    accumulator_dtype=accumulator_dtype,
  )
  p, samples = params(), []
  state = optimizer.init(p)
  update = jax.jit(optimizer.update)
  for number in range(40):
    updates, state = update(gradients(p, number), state, p)
    p = optax.apply_updates(p, updates)
    samples.append(jax.tree.map(np.float64, state.z))
  weights = Ema(0.75).weights(40)
  exact = jax.tree.map(
    lambda *zs: sum(w * z for w, z in zip(weights, zs, strict=True)), *samples
  )
  # Computed from y, which is rounded to 2^-24 of at most 8 and enlarged by
  # 1/mu; an EMA of four samples remembers a few such errors.
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(exact))
  error = largest * 4 * 2**-23 / (mu if accumulator_dtype is None else 1.0)
  assert_close(wj.eval_params(state, p), exact, rtol=0, atol=error)


def test_without_momentum_nothing_more_is_stored_than_with_it():
  """z takes the place of the first moment."""

  def floats(optimizer):
    leaves = jax.tree.leaves(optimizer.init(params()))
    return sum(leaf.size for leaf in leaves if leaf.ndim)

  size = sum(leaf.size for leaf in jax.tree.leaves(params()))
  base = wj.nadamw(0.1, b1=0.0)
  assert floats(wj.nadamw(0.1)) == 2 * size
  assert floats(wj.primal_average(base, Ema(0.9))) == 2 * size
  stored = wj.primal_average(base, Ema(0.9), accumulator_dtype=jnp.float32)
  assert floats(stored) == 3 * size


def test_nadamw_without_momentum_is_the_limit_of_little_momentum():
  none, little = wj.nadamw(0.1, b1=0.0), wj.nadamw(0.1, b1=1e-30)
  p, q = params(), params()
  state, other = none.init(p), little.init(q)
  assert state[0].mu == ()
  for number in range(3):
    updates, state = none.update(gradients(p, number), state, p)
    p = optax.apply_updates(p, updates)
    updates, other = little.update(gradients(q, number), other, q)
    q = optax.apply_updates(q, updates)
  assert_equal(p, q)


def test_bfloat16_parameters_need_an_average_of_their_own():
  """An x computed from y would be as coarse as y."""
  p = params(jnp.bfloat16)
  with pytest.raises(
    ValueError, match=r"params\['a'\] of dtype bfloat16. primal_average comp"
  ):
    wj.primal_average(optax.sgd(0.1), Ema(0.5)).init(p)
  optimizer = wj.primal_average(
    wj.nadamw(1e-4, b1=0.0), Ema(0.5), accumulator_dtype=jnp.float32
  )
  trained, state, _ = train(optimizer, 4, p)
  for leaf in jax.tree.leaves((state.z, state.x)):
    assert leaf.dtype == jnp.float32
  # Steps of 1e-4 are lost in bfloat16 and kept in z.
  assert_equal(trained, p)
  assert_close(state.z, jax.tree.map(jnp.float32, p), rtol=0, atol=4e-4 + 1e-6)
  assert not np.array_equal(state.z['a'], np.float32(p['a']))
  y = jax.tree.map(
    lambda x, z: (0.9 * x + 0.1 * z).astype(jnp.bfloat16), state.x, state.z
  )
  assert_equal(trained, y)


@pytest.mark.usefixtures('x64')
def test_dtypes_under_x64():
  p = {'f': jnp.zeros(2, jnp.float32), 'd': jnp.zeros(2, jnp.float64)}
  optimizer = wj.primal_average(wj.nadamw(0.1, b1=0.0), Ema(0.5))
  state = optimizer.init(p)
  updates, after = optimizer.update(p, state, p)
  for tree in (after.z, updates, wj.eval_params(after, p)):
    assert tree['f'].dtype == jnp.float32
    assert tree['d'].dtype == jnp.float64
  assert jax.tree.map(jnp.result_type, after) == jax.tree.map(
    jnp.result_type, state
  )


def test_complex_parameters():
  optimizer = wj.primal_average(optax.sgd(1.0), Polynomial(0.0), 0.5)
  p = jnp.array(0j)
  state = optimizer.init(p)
  for _ in range(2):
    updates, state = optimizer.update(jnp.array(-1 - 2j), state, p)
    p = optax.apply_updates(p, updates)
  np.testing.assert_allclose(wj.eval_params(state, p), 1.5 + 3j, rtol=3e-7)


# Among optax's transformations.


def build(base=None, **options):
  return wj.primal_average(base or optax.sgd(0.1), Ema(0.75), **options)


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


@pytest.mark.parametrize('array', [jnp.array(0.0), np.array(0.0), np.ones(2)])
def test_an_array_at_which_x_is_unknown_is_refused(array):
  with pytest.raises(ValueError, match=r'Invalid interpolation=.* as an array'):
    wj.primal_average(optax.sgd(0.1), Ema(0.5), array)


def test_numpy_numbers_are_checked_as_numbers():
  with pytest.raises(ValueError, match='Invalid interpolation='):
    wj.primal_average(optax.sgd(0.1), Ema(0.5), np.float32(1.5))
  plain = wj.primal_average(optax.sgd(0.1), Ema(0.5), np.float32(0.0))
  expected = wj.primal_average(optax.sgd(0.1), Ema(0.5), 0.0)
  state, same = plain.init(params()), expected.init(params())
  assert jax.tree.structure(state) == jax.tree.structure(same)


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


def test_before_the_first_sample_training_is_the_base_optimizers():
  trained, state, seen = train(build(start=5), 4, params())
  plain, _, _ = train(
    optax.chain(optax.sgd(0.1), wj.ema_weights(0.5)), 4, params()
  )
  assert int(state.num_samples) == 0
  assert_close(trained, plain, rtol=3e-7)
  assert_equal(seen[-1][1], trained)


def test_coefficient_averages_what_belongs_to_x():
  """As running statistics: any value of a step, by the state's coefficient."""
  p, state = params(), build().init(params())
  average, values = 0.0, np.random.default_rng(0).normal(size=6)
  for number, value in enumerate(values):
    updates, state = build().update(gradients(p, number), state, p)
    p = optax.apply_updates(p, updates)
    average += float(state.coefficient) * (value - average)
  expected = np.dot(Ema(0.75).weights(6), values)
  assert average == pytest.approx(expected, rel=1e-5)


# Values that are not finite.


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('accumulator_dtype', [None, jnp.float32])
def test_a_step_that_is_not_finite_is_as_if_it_was_not_made(
  scheme, bad, accumulator_dtype
):
  """The moments are not lost, as in PyTorch, also after a first bad step."""
  optimizer = wj.primal_average(
    wj.nadamw(0.5, b1=0.5, b2=0.9),
    SCHEMES[scheme],
    0.5,
    learning_rate=0.5 if scheme == 'schedule_free' else None,
    accumulator_dtype=accumulator_dtype,
  )
  p = jnp.array([1.0, 2.0])
  state = optimizer.init(p)
  q = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
  averager = Averager([('q', q)], SCHEMES[scheme], interpolation=0.5)
  reference = NadamW([q], lr=0.5, betas=(0.5, 0.9))
  for number in range(7):
    gradient = np.sin(np.float32([number, number + 1]))
    is_bad = number in (0, 4)
    if is_bad:
      gradient[1] = bad
    before = p, state
    updates, state = optimizer.update(jnp.asarray(gradient), state, p)
    p = optax.apply_updates(p, updates)
    q.grad = torch.from_numpy(gradient)
    averager.before_step(reference)
    reference.step()
    averager.update()
    if is_bad:
      unchanged = state._replace(
        count=before[1].count,
        num_skipped=before[1].num_skipped,
        coefficient=before[1].coefficient,
      )
      assert_equal((p, unchanged), before)
      assert float(state.coefficient) == 0.0
    # A few roundings of float32, enlarged by 1/mu and by a small denominator.
    np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-5)
    with averager.evaluating():
      x = wj.eval_params(state, p)
      np.testing.assert_allclose(x, q.detach().numpy(), rtol=1e-5)
  assert (int(state.num_samples), int(state.num_skipped)) == (5, 2)
  assert (averager.samples, averager.skipped) == (5, 2)


def test_a_finite_gradient_may_make_z_infinite():
  """0 / 0 without an eps: y and z continue from x, as in PyTorch."""
  optimizer = wj.primal_average(
    wj.nadamw(0.5, b1=0.0, b2=0.9, eps=0.0), Polynomial(0.0), 0.5
  )
  p = jnp.array([1.0, 2.0])
  state = optimizer.init(p)
  for gradient in (0.0, 1.0, 1.0):
    x = wj.eval_params(state, p)
    updates, state = optimizer.update(jnp.array([gradient, 1.0]), state, p)
    p = optax.apply_updates(p, updates)
    if not gradient:
      assert_equal((p, state.z, wj.eval_params(state, p)), (x, x, x))
    assert np.isfinite(p).all()
  assert (int(state.num_samples), int(state.num_skipped)) == (2, 1)
  # The base optimizer has made all three.
  assert int(state.num_made) == 3


def test_without_skip_nonfinite_it_enters():
  optimizer = build(skip_nonfinite=False)
  p = jnp.array([1.0])
  state = optimizer.init(p)
  for gradient in (1.0, np.nan):
    updates, state = optimizer.update(jnp.array([gradient]), state, p)
    p = optax.apply_updates(p, updates)
  assert np.isnan(wj.eval_params(state, p)).all()
  assert int(state.num_skipped) == 0


# Bad input.


class Constant(Recursive):
  """A scheme that JAX does not know."""

  name = 'constant'

  def coefficient(self, count):
    return 0.25


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda s: s(Ema(0.5), 1.0), r'Invalid interpolation=1.0. Must be in \[0'),
    (lambda s: s(Ema(0.5), -0.1), 'Invalid interpolation=-0.1.'),
    (lambda s: s(Lawa(2)), 'Invalid interpolation=0.9. Training at an average'),
    (lambda s: s(Raw()), 'none is not.'),
    (lambda s: s(Auto('raw, ema 0.1')), 'auto is not.'),
    (lambda s: s(ScheduleFree(), 0.0), r'Must be in \(0, 1\) for schedule_fr'),
    (lambda s: s(Ema(horizon=0.1)), r'Missing decay. Ema\(horizon=0.1\) has a'),
    (lambda s: s(Constant()), 'Must be Ema, Polynomial or ScheduleFree in JAX'),
    (lambda s: s(Ema), 'Invalid scheme=<class .*Must be Ema, Polynomial, Sch'),
    (lambda s: s(0.9), 'Invalid scheme=0.9. Must be Ema, Polynomial, Schedule'),
    (lambda s: s(lambda k: 1 / k, 0.0), r'Must be in \(0, 1\) with a function'),
    (lambda s: s(Ema(0.5), every=0), 'Invalid every=0. Must be an integer'),
    (lambda s: s(Ema(0.5), start=-1), 'Invalid start=-1.'),
    (
      lambda s: s(Ema(0.5), learning_rate=0.1),
      'Invalid learning_rate. It has no effect without ScheduleFree',
    ),
    (
      lambda s: s(ScheduleFree(), learning_rate=-0.1),
      r'Invalid learning_rate=-0.1. Must be in \[0, inf\).',
    ),
    (lambda s: s(ScheduleFree(), learning_rate=np.nan), 'learning_rate=nan. M'),
    (
      lambda s: s(ScheduleFree(), learning_rate=jnp.ones(2)),
      r'Invalid learning_rate of shape \(2,\). Must be \(\).',
    ),
    (
      lambda s: s(ScheduleFree(), learning_rate='0.1'),
      "Invalid learning_rate='0.1'. Must be a number.",
    ),
    (
      lambda s: s(Ema(0.5), accumulator_dtype=jnp.bfloat16),
      'Invalid accumulator_dtype=bfloat16. Must be float32 or wider',
    ),
  ],
)
def test_arguments_out_of_range(make, message):
  with pytest.raises(ValueError, match=message):
    make(lambda *args, **kw: wj.primal_average(optax.sgd(0.1), *args, **kw))


def test_bad_input_gives_one_line_at_trace_time():
  optimizer = build()
  state = optimizer.init(params())
  with pytest.raises(ValueError, match=r'Missing params. primal_average moves'):
    optimizer.update(params(), state)
  with pytest.raises(ValueError, match=r"\['x'\]='text'. primal_average avera"):
    optimizer.init({'x': 'text'})
  with pytest.raises(ValueError, match='Invalid state of type EmptyState'):
    optimizer.update(params(), optax.EmptyState(), params())
  with pytest.raises(
    ValueError, match=r"params\['b'\]. primal_average averages"
  ):
    optimizer.init({'a': jnp.ones(2), 'b': jnp.array([0.0, -jnp.inf])})
  scheduled = wj.primal_average(
    optax.sgd(0.1), ScheduleFree(), learning_rate=lambda _: jnp.ones(2)
  )
  with pytest.raises(
    ValueError, match=r'Invalid learning_rate of shape \(2,\)'
  ):
    jax.eval_shape(scheduled.update, params(), state, params())
  changed = {'a': jnp.zeros(3), 'b': {'c': jnp.zeros((2, 1))}}
  for call in (
    lambda: jax.eval_shape(optimizer.update, changed, state, changed),
    lambda: wj.eval_params(state, changed),
  ):
    with pytest.raises(ValueError, match=r"Invalid params\['a'\] of shape"):
      call()
