"""Training at an average: running statistics that alone are not finite."""

import numpy as np
import pytest
from jax_support import import_jax

jax = import_jax('jax')
jax_host = import_jax('jax_host')
FrozenDict = import_jax('flax.core').FrozenDict

FOLDER = 'nadamw_primal_jax'


class Overflowing(jax_host.Workload):
  """Statistics that a batch may spoil where logits and gradients are finite."""

  def model_fn(
    self, params, augmented_and_preprocessed_input_batch, *rest, **options
  ):
    batch = augmented_and_preprocessed_input_batch
    logits, state = super().model_fn(params, batch, *rest, **options)
    return logits, FrozenDict({'mean': state['mean'] * batch['factor']})


def update(host, factor):
  batch = next(host.batches())
  host.update(batch | {'factor': np.float32(factor)})
  return host.raw()


@pytest.mark.parametrize(
  ('batch_norm', 'factor'),
  [
    ('current', np.inf),
    pytest.param('averaged', np.nan, marks=pytest.mark.slow),
    ('refreshed', np.nan),
  ],
)
def test_a_step_is_made_and_its_bad_statistics_are_not_kept(batch_norm, factor):
  hosts = [
    jax_host.Host(
      FOLDER, workload=Overflowing(), averaging_batch_norm=batch_norm
    )
    for _ in range(2)
  ]
  for host in hosts:
    _, before = update(host, 1.0)
  host, undisturbed = hosts
  params, statistics = update(host, factor)
  jax.tree.map(np.testing.assert_array_equal, statistics, before)
  # The step of the weights is that of a good batch.
  expected, _ = update(undisturbed, 1.0)
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  assert int(host.state[0].train.optimizer.num_skipped) == 0
  for _ in range(2):
    _, later = update(host, 1.0)
  assert (later['mean'] != before['mean']).all()
  host.prepare_for_eval()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(host.shown()))
