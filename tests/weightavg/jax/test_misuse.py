"""Arguments, parameters and states that JAX's transformations refuse."""

import numpy as np
import pytest
from jax_support import import_jax
from jax_transformations import SCHEMES, train
from jax_trees import PARAMS, assert_equal, params

from weightavg import Ema

jax, jnp, optax, wj, flax_core = import_jax(
  'jax', 'jax.numpy', 'optax', 'weightavg.jax', 'flax.core'
)


def test_a_schedule_free_state_is_no_average():
  with pytest.raises(ValueError, match='It holds no averaging state: add ema'):
    wj.eval_params(optax.adam(0.1).init(params()), params())


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: wj.ema_weights(1.0), r'Invalid decay=1.0. Must be in \[0, 1\).'),
    (lambda: wj.ema_weights(-0.1), 'Invalid decay=-0.1.'),
    (lambda: wj.ema_weights(np.float32(1.5)), 'Invalid decay=1.5.'),
    (lambda: wj.ema_weights(0.5, every=0), 'Invalid every=0. Must be an int'),
    (lambda: wj.ema_weights(0.5, every=1.5), 'Invalid every=1.5. Must be an'),
    (lambda: wj.ema_weights(0.5, start=-1), 'Invalid start=-1. Must be an int'),
    (lambda: wj.ema_weights('0.9'), "Invalid decay='0.9'. Must be a number."),
    (lambda: wj.ema_weights(jnp.ones(2)), r'Invalid decay of shape \(2,\)'),
    (lambda: wj.ema_weights(jnp.array(1.5)), r'Invalid decay=1.5. Must be in'),
    (
      lambda: wj.ema_weights(0.5, accumulator_dtype=int),
      "Invalid accumulator_dtype=<class 'int'>. Must be a floating-point",
    ),
    (
      lambda: wj.lawa_weights(2, accumulator_dtype='float31'),
      'Invalid accumulator_dtype=float31. Must be a floating-point or compl',
    ),
    (
      lambda: wj.lawa_weights(2, accumulator_dtype='float8_e4m3fn'),
      'Invalid accumulator_dtype=float8_e4m3fn. Must be .*of 16 bits or more',
    ),
    (lambda: wj.ema_weights(0.5, every=jnp.array(0)), 'Invalid every=Array.0'),
    (
      lambda: wj.ema_weights(0.5, every=jnp.array([2, 3])),
      r'Invalid every=Array\(\[2, 3\]',
    ),
    (
      lambda: optax.inject_hyperparams(
        wj.ema_weights, static_args='accumulator_dtype'
      )(decay=0.5, every=-2).init(jnp.ones(2)),
      'Invalid every=Array',
    ),
    (lambda: wj.lawa_weights(0), 'Invalid window=0. Must be an integer in'),
    (lambda: wj.lawa_weights(True), 'Invalid window=True.'),
    (lambda: wj.polynomial_weights(-1.0), 'Invalid power=-1.0. Must be in'),
    (lambda: wj.nadamw(0.1, b1=1.0), 'Invalid b1=1.0.'),
    (lambda: wj.warmup_schedule(1.0, 0), 'Invalid decay_steps=0.'),
    (
      lambda: wj.warmup_schedule(-1.0, 5),
      r'Invalid peak_value=-1.0. Must be in \[0, inf\).',
    ),
    (lambda: wj.warmup_schedule(np.nan, 5), 'Invalid peak_value=nan. Must be'),
    (lambda: wj.warmup_schedule('1', 5), "Invalid peak_value='1'. Must be a n"),
    (
      lambda: jax.eval_shape(lambda s: wj.warmup_schedule(1.0, s)(0), 5),
      'Invalid decay_steps: traced. Must be a number when',
    ),
    (
      lambda: wj.ema_weights(0.5, accumulator_dtype=jnp.float64),
      'Invalid accumulator_dtype=float64. JAX has it with jax_enable_x64 alone',
    ),
    (
      lambda: wj.ema_weights(0.5).init({'w': jnp.ones(2, jnp.float8_e5m2)}),
      r"params\['w'\] of dtype float8_e5m2. ema_weights takes dtypes of 16",
    ),
    (
      lambda: wj.warmup_schedule(1.0, 5, schedule='step'),
      "Invalid schedule='step'. Must be one of cosine, cosine_to_half, const",
    ),
  ],
)
def test_arguments_out_of_range(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_decay_that_16_bits_round_to_one_is_refused():
  make = optax.inject_hyperparams(wj.ema_weights)
  narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params())
  with pytest.raises(
    ValueError, match=r'Invalid decay=1.0. Must.*bfloat16: give inject_hyper'
  ):
    make(decay=0.999).init(narrow)
  wide = optax.inject_hyperparams(wj.ema_weights, hyperparam_dtype=jnp.float32)(
    decay=0.999
  )
  *_, shown = train(optax.chain(optax.sgd(0.0), wide), 3, narrow)
  assert_equal(shown, narrow)


@pytest.mark.parametrize('scheme', [*SCHEMES, 'primal'])
@pytest.mark.parametrize('value', [np.complex64(1 + 2j), 1 + 2j])
def test_a_complex_parameter_needs_a_complex_average(scheme, value):
  make = {
    'ema': lambda **kw: wj.ema_weights(0.5, **kw),
    'lawa': lambda **kw: wj.lawa_weights(2, **kw),
    'polynomial': lambda **kw: wj.polynomial_weights(**kw),
    'primal': lambda **kw: wj.primal_average(optax.sgd(1.0), Ema(0.5), **kw),
  }[scheme]
  with pytest.raises(
    ValueError, match=r"float32. Must be complex, .*params\['a'\] of dtype com"
  ):
    make(accumulator_dtype=jnp.float32).init({'a': value})
  for dtype in (None, jnp.complex64):
    averaging = make(accumulator_dtype=dtype)
    initial = {'a': jnp.asarray(value)}
    state = averaging.init(initial)
    _, state = averaging.update({'a': jnp.zeros_like(value)}, state, initial)
    assert wj.eval_params(state, initial)['a'] == 1 + 2j


@pytest.mark.parametrize('scheme', [*SCHEMES, 'primal'])
def test_containers_of_other_types_give_one_line(scheme):
  averaging = (
    wj.primal_average(optax.sgd(1.0), Ema(0.5))
    if scheme == 'primal'
    else SCHEMES[scheme]()
  )
  frozen = flax_core.freeze(params())
  state = averaging.init(frozen)
  for call in (
    lambda: averaging.update(params(), state, params()),
    lambda: wj.eval_params(state, params()),
  ):
    with pytest.raises(
      ValueError, match=r'^Invalid params of type dict. \w+ was initialised w'
    ):
      call()


def test_an_injected_window_says_how():
  with pytest.raises(ValueError, match='name it in static_args'):
    optax.inject_hyperparams(wj.lawa_weights)(window=2).init(params())


@pytest.mark.parametrize('scheme', SCHEMES)
def test_bad_input_gives_one_line_at_trace_time(scheme):
  averaging = SCHEMES[scheme]()
  name = f'{scheme}_weights'
  state = averaging.init(params())

  def update(state, updates, params=None):
    return jax.eval_shape(averaging.update, updates, state, params)

  with pytest.raises(ValueError, match=f'Missing params. {name} averages'):
    update(state, params())
  with pytest.raises(
    ValueError, match=rf"Invalid params\['x'\]='text'. {name} averages arrays."
  ):
    averaging.init({'x': 'text'})
  with pytest.raises(ValueError, match='Invalid state of type EmptyState'):
    averaging.update(params(), optax.EmptyState(), params())
  changed = {'a': jnp.zeros(3), 'b': {'c': jnp.zeros((2, 1))}}
  with pytest.raises(
    ValueError,
    match=rf"Invalid params\['a'\] of shape \(3,\). {name} was initialised "
    r'with shape \(2,\).',
  ):
    update(state, changed, changed)
  with pytest.raises(ValueError, match=r"params\['b'\]\['c'\], which is miss"):
    update(state, {'a': PARAMS['a']}, {'a': PARAMS['a']})
  more = {**params(), 'd': jnp.zeros(1)}
  with pytest.raises(
    ValueError, match=rf"Invalid params\['d'\]. {name} was initialised without"
  ):
    update(state, more, more)
  with pytest.raises(ValueError, match=r"Invalid params\['a'\] of shape"):
    wj.eval_params(state, changed)
