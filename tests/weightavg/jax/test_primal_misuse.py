"""Training at an average in JAX: arguments and states that are refused."""

import numpy as np
import pytest
from jax_primal_runs import build
from jax_support import import_jax
from jax_trees import params

from weightavg import Ema, Lawa, ScheduleFree
from weightavg.schemes import Auto, Raw, Recursive

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')


@pytest.mark.parametrize('array', [jnp.array(0.0), np.array(0.0), np.ones(2)])
def test_an_array_at_which_x_is_unknown_is_refused(array):
  with pytest.raises(ValueError, match=r'Invalid interpolation=.* as an array'):
    wj.primal_average(optax.sgd(0.1), Ema(0.5), array)


@pytest.mark.parametrize('value', [None, 'a', [0.9], jnp.array(True)])
def test_what_is_no_number_is_refused(value):
  with pytest.raises(ValueError, match=r'Invalid interpolation='):
    wj.primal_average(optax.sgd(0.1), Ema(0.5), value)


def test_numpy_numbers_are_checked_as_numbers():
  with pytest.raises(ValueError, match='Invalid interpolation='):
    wj.primal_average(optax.sgd(0.1), Ema(0.5), np.float32(1.5))
  plain = wj.primal_average(optax.sgd(0.1), Ema(0.5), np.float32(0.0))
  expected = wj.primal_average(optax.sgd(0.1), Ema(0.5), 0.0)
  state, same = plain.init(params()), expected.init(params())
  assert jax.tree.structure(state) == jax.tree.structure(same)


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
  with pytest.raises(
    ValueError, match=r'Missing updates. primal_average trains'
  ):
    wj.observe(optimizer, params(), state)
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
