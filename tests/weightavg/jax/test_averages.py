"""Averages in JAX: literal arithmetic, explicit sums, PyTorch's averages."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax_support import import_jax

from weightavg import AveragingConfig
from weightavg.pytorch import Averager

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')
trees = import_jax('weightavg.jax.trees')

SCHEMES = {
  'ema': lambda **kwargs: wj.ema_weights(decay=0.5, **kwargs),
  'lawa': lambda **kwargs: wj.lawa_weights(window=2, **kwargs),
  'polynomial': lambda **kwargs: wj.polynomial_weights(power=1.0, **kwargs),
}


def run(averaging, values, state=None):
  """Hand values over one by one, in one compiled loop."""
  if state is None:
    state = averaging.init(jax.tree.map(lambda x: x[0], values))

  def step(state, value):
    state = wj.observe(averaging, value, state)
    return state, wj.eval_params(state, value)

  return jax.jit(lambda s, v: jax.lax.scan(step, s, v))(state, values)


@pytest.mark.parametrize(
  ('scheme', 'expected'),
  [
    # After the samples 1, 2, 4 and 8.
    ('ema', [1.0, 5 / 3, 3.0, (1 + 4 + 16 + 64) / 15]),
    ('lawa', [1.0, 1.5, 3.0, 6.0]),
    # c = 1, 2/3, 1/2, 2/5.
    ('polynomial', [1.0, 5 / 3, 17 / 6, 17 / 6 + 0.4 * (8 - 17 / 6)]),
  ],
)
def test_literal_arithmetic(scheme, expected):
  _, averages = run(SCHEMES[scheme](), jnp.array([1.0, 2.0, 4.0, 8.0]))
  # A few roundings of float32.
  np.testing.assert_allclose(averages, expected, rtol=3e-7)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_samples_are_the_updated_parameters_at_the_cadence(scheme):
  """Steps 4 and 6 enter: not before step 3, every second one."""
  averaging = SCHEMES[scheme](every=2, start=3)
  optimizer = optax.chain(optax.sgd(1.0), averaging)
  params = jnp.array(0.0)
  state, reference = optimizer.init(params), averaging.init(params)
  for step in range(1, 8):
    updates, state = optimizer.update(jnp.array(-1.0), state, params)
    params = optax.apply_updates(params, updates)
    if step in (4, 6):
      # The same average, fed by hand at each of its own steps.
      reference = wj.observe(SCHEMES[scheme](), params, reference)
    shown = wj.eval_params(state, params)
    expected = params if step < 4 else wj.eval_params(reference, params)
    assert float(shown) == float(expected), step
  (averaging_state,) = wj.averaging_states(state)
  assert int(averaging_state.count) == 7
  assert int(averaging_state.num_samples) == 2


@st.composite
def schemes(draw):
  """A transformation and the configuration of the same average."""
  every = draw(st.integers(1, 4))
  start = draw(st.integers(0, 6))
  common = {'averaging_every_steps': every, 'averaging_start': start / 100}
  kind = draw(st.sampled_from(['ema', 'lawa', 'polynomial']))
  if kind == 'ema':
    decay = draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.999, 1 - 1e-7]))
    made = wj.ema_weights(decay, every, start)
    return made, AveragingConfig.from_point(
      averaging_scheme='ema', ema_decay=decay, **common
    )
  if kind == 'lawa':
    window = draw(st.integers(1, 5))
    made = wj.lawa_weights(window, every, start)
    return made, AveragingConfig.from_point(
      averaging_scheme='lawa', lawa_window=window, **common
    )
  power = draw(st.sampled_from([0.0, 1.5, 4.0, 100.0]))
  made = wj.polynomial_weights(power, every, start)
  return made, AveragingConfig.from_point(
    averaging_scheme='polynomial', averaging_power=power, **common
  )


@pytest.mark.usefixtures('x64')
@settings(deadline=None, max_examples=12)
@given(scheme=schemes(), seed=st.integers(0, 2**32 - 1))
def test_equal_to_pytorch_in_float64(scheme, seed):
  """At every step; 1e-12: the same recursion, a few roundings apart."""
  averaging, config = scheme
  values = np.random.default_rng(seed).normal(size=(20, 7))
  state, shown = run(averaging, jnp.asarray(values))
  weight = torch.zeros(7, dtype=torch.float64)
  averager = Averager.from_config([('w', weight)], config, budget=100)
  for step, value in enumerate(values):
    weight.copy_(torch.from_numpy(value))
    averager.update()
    with averager.evaluating():
      expected = weight.numpy().copy()
    np.testing.assert_allclose(shown[step], expected, rtol=0, atol=1e-12)
  assert int(state.num_samples) == averager.samples


@pytest.mark.parametrize('scheme', SCHEMES)
def test_equal_to_the_explicit_sum_in_float32(scheme):
  """1e-6: tens of roundings of numbers of order one."""
  from weightavg.schemes import Ema, Lawa, Polynomial

  explicit = {
    'ema': Ema(decay=0.5),
    'lawa': Lawa(window=2),
    'polynomial': Polynomial(power=1.0),
  }[scheme]
  values = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
  _, shown = run(SCHEMES[scheme](), jnp.asarray(values))
  for count in range(1, 10):
    weights = np.array(explicit.weights(count))
    expected = weights @ values[:count].astype(np.float64)
    np.testing.assert_allclose(shown[count - 1], expected, atol=1e-6)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_first_sample_is_the_average_bit_for_bit(scheme):
  value = np.random.default_rng(0).normal(size=(1, 100)).astype(np.float32)
  _, shown = run(SCHEMES[scheme](), jnp.asarray(value))
  np.testing.assert_array_equal(shown, value)


def test_degenerate_averages_are_the_latest_sample_bit_for_bit():
  values = np.random.default_rng(0).normal(size=(5, 100)).astype(np.float32)
  for averaging in (wj.ema_weights(0.0), wj.lawa_weights(1)):
    np.testing.assert_array_equal(
      run(averaging, jnp.asarray(values))[1], values
    )


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite_never_enters(scheme, bad):
  """Not even its finite leaves; also as the first sample."""
  good = {'a': jnp.array([1.0, 3.0]), 'b': jnp.array([[2.0], [4.0]])}
  poisoned = {
    'a': jnp.array([bad, 1.0, bad, 3.0]),
    'b': jnp.array([[9.0], [2.0], [9.0], [4.0]]),
  }
  clean, shown = run(SCHEMES[scheme](), good)
  state, shown_poisoned = run(SCHEMES[scheme](), poisoned)
  assert int(state.num_skipped) == 2
  assert int(state.num_samples) == int(clean.num_samples) == 2
  assert float(shown_poisoned['a'][-1]) == float(shown['a'][-1])
  assert float(shown_poisoned['b'][2, 0]) == 2.0


@pytest.mark.parametrize('scheme', SCHEMES)
def test_empty_and_complex_leaves_are_checked(scheme):
  tree = {'empty': jnp.zeros((2, 0)), 'c': jnp.array([1j, complex(0, np.nan)])}
  state, shown = run(SCHEMES[scheme](), tree)
  assert (int(state.num_samples), int(state.num_skipped)) == (1, 1)
  assert shown['c'][-1] == 1j
  assert shown['empty'].shape == (2, 0)


def test_without_skip_nonfinite_it_enters():
  averaging = wj.ema_weights(0.5, skip_nonfinite=False)
  state, shown = run(averaging, jnp.array([1.0, np.nan]))
  assert np.isnan(shown[-1])
  assert int(state.num_skipped) == 0


@pytest.mark.parametrize('scheme', SCHEMES)
def test_integers_booleans_and_random_keys_are_copied(scheme):
  tree = {
    'w': jnp.array([1.0, 2.0, 3.0]),
    'steps': jnp.array([10, 20, 30]),
    'flag': jnp.array([True, True, False]),
    'key': jax.random.split(jax.random.key(0), 3),
  }
  state, _ = run(SCHEMES[scheme](), tree)
  last = jax.tree.map(lambda x: x[-1], tree)
  shown = wj.eval_params(state, last)
  assert int(shown['steps']) == 30
  assert not bool(shown['flag'])
  assert shown['steps'].dtype == tree['steps'].dtype
  assert (
    jax.random.key_data(shown['key']) == jax.random.key_data(tree['key'][-1])
  ).all()


def test_complex_parameters_are_averaged():
  _, shown = run(wj.ema_weights(0.5), jnp.array([1 + 2j, 4 + 8j]))
  np.testing.assert_allclose(shown[-1], 3 + 6j, rtol=3e-7)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_bfloat16_is_averaged_in_float32(scheme):
  """An average in bfloat16 would not move: 256 + 1 is 256 there."""
  values = jnp.array([256.0, 258.0, 262.0], jnp.bfloat16)
  state, shown = run(SCHEMES[scheme](), values)
  assert shown.dtype == jnp.bfloat16
  buffers = state[3]
  if scheme == 'lawa':
    # Samples are exact copies in their own dtype.
    assert buffers.dtype == jnp.bfloat16
  else:
    assert buffers.dtype == jnp.float32
  exact, _ = run(SCHEMES[scheme](), values.astype(jnp.float32))
  in_float32 = wj.eval_params(state, jnp.array(0.0, jnp.float32))
  np.testing.assert_array_equal(
    in_float32, wj.eval_params(exact, jnp.array(0.0, jnp.float32))
  )


@pytest.mark.usefixtures('x64')
def test_dtypes_under_x64():
  """float32 stays float32, float64 is kept: nothing is widened by chance."""
  params = {'f': jnp.zeros(2, jnp.float32), 'd': jnp.zeros(2, jnp.float64)}
  for make in SCHEMES.values():
    averaging = make()
    state = wj.observe(averaging, params, averaging.init(params))
    for tree in (state[3], wj.eval_params(state, params)):
      assert tree['f'].dtype == jnp.float32
      assert tree['d'].dtype == jnp.float64
    assert state.count.dtype == jnp.int32


@pytest.mark.parametrize('scheme', ['ema', 'polynomial'])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_an_accumulator_of_16_bits_is_refused(scheme, dtype):
  """In bfloat16 it stands still at 0.25 while samples rise from 0 to 1."""
  with pytest.raises(
    ValueError, match=f'Invalid accumulator_dtype={dtype}. Must be float32 or'
  ):
    SCHEMES[scheme](accumulator_dtype=dtype)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_a_sample_is_looked_at_in_the_dtype_of_its_window(dtype):
  """7e4 is infinite in float16, 3.4e38 in bfloat16."""
  averaging = wj.lawa_weights(2, accumulator_dtype=dtype)
  large = 7e4 if dtype == 'float16' else 3.4e38
  state, shown = run(averaging, jnp.array([1.0, large, 2.0]))
  assert state.window.dtype == dtype
  assert shown.dtype == jnp.float32
  np.testing.assert_array_equal(shown, [1.0, 1.0, 1.5])
  assert (int(state.num_samples), int(state.num_skipped)) == (2, 1)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('dtype', ['float32', 'complex64'])
def test_a_sample_is_looked_at_in_the_dtype_of_its_average(dtype):
  averaging = wj.ema_weights(0.5, accumulator_dtype=dtype)
  wide = 'complex128' if dtype == 'complex64' else 'float64'
  state, shown = run(averaging, jnp.array([1.0, 1e300, 1.0], wide))
  np.testing.assert_array_equal(shown, 1.0)
  assert (int(state.num_samples), int(state.num_skipped)) == (2, 1)


@pytest.mark.parametrize(
  'dtype', ['float32', 'bfloat16', 'float16', 'complex64']
)
def test_the_difference_of_a_leaf_and_itself_is_no_zero_to_the_compiler(dtype):
  look = jax.jit(trees.all_finite)
  values = np.ones((5, 3, 4), np.complex64)
  values[1:, 1, 2] = [np.nan, np.inf, -np.inf, complex(0, np.inf)]
  if dtype != 'complex64':
    values = values[:4].real
  found = [bool(look([jnp.asarray(v, dtype)])) for v in values]
  assert found == [True] + [False] * (len(values) - 1)


def test_constant_parameters_are_their_own_average():
  """Check that no start value leaks in at a cadence of three."""
  value = np.float32(0.1)
  for make in SCHEMES.values():
    _, shown = run(make(every=3), jnp.full(20, value))
    # A mean of equal numbers is rounded twice.
    np.testing.assert_allclose(shown, value, rtol=2e-7)
