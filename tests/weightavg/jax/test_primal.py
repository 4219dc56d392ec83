"""Training at an average in JAX: arithmetic, PyTorch's and optax's, dtypes."""

import numpy as np
import pytest
import torch
from jax_primal_runs import SCHEMES, assert_close, build, gradients, train
from jax_support import import_jax
from jax_trees import assert_equal, params

from weightavg import Ema, Polynomial, ScheduleFree
from weightavg.learning_rate import factor
from weightavg.pytorch import Averager, NadamW

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')
coefficients = import_jax('weightavg.jax.coefficients')


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
@pytest.mark.parametrize(
  ('every', 'start'),
  [
    (1, 0),
    pytest.param(3, 0, marks=pytest.mark.slow),
    pytest.param(1, 4, marks=pytest.mark.slow),
    (2, 5),
  ],
)
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
@pytest.mark.parametrize(
  'base', [pytest.param('sgd', marks=pytest.mark.slow), 'adam']
)
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
