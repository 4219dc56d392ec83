"""Training at an average in JAX: steps that are not finite are not made."""

import numpy as np
import pytest
import torch
from jax_primal_runs import SCHEMES, build
from jax_support import import_jax
from jax_trees import assert_equal

from weightavg import Polynomial
from weightavg.pytorch import Averager, NadamW

jax, jnp, optax, wj = import_jax('jax', 'jax.numpy', 'optax', 'weightavg.jax')


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


@pytest.mark.parametrize('accumulator_dtype', [None, jnp.float32])
def test_an_interpolation_that_changes_in_a_step_that_is_left_out(
  accumulator_dtype,
):
  optimizer = optax.inject_hyperparams(
    wj.primal_average,
    static_args=('base_optimizer', 'scheme', 'accumulator_dtype'),
  )(
    base_optimizer=optax.sgd(0.1),
    scheme=Polynomial(1.0),
    interpolation=0.9,
    accumulator_dtype=accumulator_dtype,
  )
  p = jnp.array([1.0])
  state = optimizer.init(p)

  def step(p, state, gradient):
    updates, state = optimizer.update(jnp.array([gradient]), state, p)
    return optax.apply_updates(p, updates), state

  for gradient in (1.0, 2.0, -1.0):
    p, state = step(p, state, gradient)
  x = wj.eval_params(state, p)
  state.hyperparams['interpolation'] = jnp.array(0.5)
  left_out, state = step(p, state, np.nan)
  assert_equal(left_out, p)
  # x is computed from y and z where it is not stored.
  np.testing.assert_allclose(wj.eval_params(state, left_out), x, rtol=1e-6)
  z = state.inner_state.z
  moved, state = step(left_out, state, 0.0)
  x = x + (z - x) * 2 / 5
  np.testing.assert_allclose(moved, (x + z) / 2, rtol=1e-6)


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
