"""The choice among averages against PyTorch's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax_support import import_jax

from weightavg.pytorch import selection

jax, jnp, wj = import_jax('jax', 'jax.numpy', 'weightavg.jax')


@settings(deadline=None, max_examples=40)
@given(
  seed=st.integers(0, 2**32 - 1),
  memory=st.sampled_from([0.0, 0.5, 0.75]),
  spread=st.sampled_from([0.01, 1.0]),
  bad=st.sampled_from([None, 0, 2]),
)
def test_chooses_as_pytorch(seed, memory, spread, bad):
  """Five evaluations, the second and third on one probe; float32 inputs."""
  rng = np.random.default_rng(seed)
  selector, previous = selection.Selector(memory), -1
  state = wj.init_selection(3)
  for step, probe in enumerate([1, 2, 2, 3, 4]):
    losses = 1000 + rng.normal(size=(1, 6)) + spread * rng.normal(size=(3, 6))
    losses = losses.astype(np.float32)
    if step == 3 and bad is not None:
      losses[bad, 1] = np.nan
    comparison = selection.compare(
      torch.from_numpy(losses), torch.tensor(6 * 256)
    )
    chosen = selector.choose(comparison, previous, step, probe)
    previous = -1 if chosen is None else chosen
    state = wj.select(
      jnp.asarray(losses), state, probe, memory, num_elements=6 * 256
    )
    assert int(state.chosen) == previous


def test_literal_choices():
  """Gain 1/4 at a standard error of 1/4 is not enough to leave a choice."""
  losses = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
  first = wj.init_selection(2)
  assert int(wj.select(losses, first, 0).chosen) == 1
  held = first._replace(chosen=jnp.int32(0))
  assert int(wj.select(losses, held, 0).chosen) == 0
  # A single example has no standard error.
  assert int(wj.select(losses[:, 3:], held, 0).chosen) == 0
  # Masked examples do not count, whatever their loss.
  masked = losses.at[0, 0].set(jnp.nan)
  valid = jnp.array([False, True, True, True])
  assert int(wj.select(masked, first, 0, valid=valid).chosen) == 1


def test_nothing_finite_chooses_nothing():
  state = wj.select(jnp.full((2, 3), jnp.nan), wj.init_selection(2), 0)
  assert int(state.chosen) == -1


def test_lists_are_taken_as_arrays():
  losses, valid = [[1.0, 1.0, 1.0], [0.5, 0.5, 2.0]], [1, 1, 0]
  state = wj.select(losses, wj.init_selection(2), 0, valid=valid)
  assert int(state.chosen) == 1
  np.testing.assert_array_equal(state.latest.counts, [2.0, 2.0, 2.0])


def test_shapes_that_do_not_match():
  first = wj.init_selection(2)
  with pytest.raises(ValueError, match=r'Invalid losses of shape \(3, 2\)'):
    wj.select(jnp.ones((3, 2)), first, 0)
  with pytest.raises(
    ValueError, match=r'Invalid valid of shape \(1,\). Must be \(4,\).'
  ):
    wj.select(jnp.ones((2, 4)), first, 0, valid=jnp.array([True]))
  with pytest.raises(
    ValueError, match=r'Invalid num_elements of shape \(4,\). Must be \(\).'
  ):
    wj.select(jnp.ones((2, 4)), first, 0, num_elements=jnp.ones(4))
