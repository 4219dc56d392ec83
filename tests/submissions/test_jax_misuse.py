"""Points and states that the submissions in JAX refuse."""

import numpy as np
import pytest
from jax_submissions import AUTO, PRIMAL, Host
from jax_support import import_jax

jax = import_jax('jax')
jax_host = import_jax('jax_host')
spec = import_jax('weightavg.spec')


def test_a_momentum_beside_the_average_warns():
  with pytest.warns(UserWarning, match='nadamw has another one of 0.9. Switch'):
    Host(PRIMAL, one_minus_beta1=0.1)


@pytest.mark.parametrize(
  ('folder', 'changes', 'message'),
  [
    ('nadamw_jax', {'fused': 'compile'}, "Invalid fused='compile'. It has no"),
    (
      'nadamw_ema_jax',
      {'averaging_placement': 'cpu'},
      "Invalid averaging_placement='cpu'. Must be one of device, sharded in J",
    ),
    (
      'nadamw_lawa_jax',
      {'averaging_interpolation': 0.9},
      'Invalid averaging_interpolation=0.9. Training at an average needs one',
    ),
    (
      'nadamw_schedule_free_jax',
      {'averaging_interpolation': 0.0},
      r'averaging_interpolation=0.0. Must be in \(0, 1\) for schedule_free',
    ),
    (
      'nadamw_primal_jax',
      {'averaging_placement': 'sharded'},
      "Invalid averaging_placement='sharded'. Must be device with averaging_in",
    ),
    (
      'nadamw_ema_jax',
      {'averaging_batch_norm': 'refreshed'},
      "Invalid averaging_batch_norm='refreshed'. Must be averaged or current w",
    ),
    (
      'nadamw_ema_jax',
      {'averaging_swap': 'copy'},
      "Invalid averaging_swap='copy'. It has no effect in JAX.",
    ),
    (
      'nadamw_ema_jax',
      {'averaging_horizon': 1.5},
      r'Invalid averaging_horizon=1.5. Must be in \(0, 1\] or null.',
    ),
    (
      'nadamw_ema_jax',
      {'averaging_scheme': 'lawa'},
      "Invalid averaging_scheme='lawa'. This submission averages by 'ema'.",
    ),
  ],
)
def test_bad_points(folder, changes, message):
  with pytest.raises(ValueError, match=message):
    Host(folder, **changes)


def test_a_state_of_another_run_is_refused(tmp_path):
  host = Host('nadamw_ema_jax')
  other = Host('nadamw_ema_jax', step_hint_factor=0.5)
  for changed, message in (
    (other.state[0], 'saved with budget=250, this submission has budget=500'),
    (Host('nadamw_lawa_jax').state[0], 'its optimizer state has another struc'),
    (Host(PRIMAL).state[0], 'its optimizer state has another struc'),
    (
      jax.tree.map(lambda x: np.zeros((*np.shape(x), 3)), host.state[0]),
      r"Invalid checkpoint: .train.params\['bias'\] has shape \(3,\), this",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      host.state[1].own(changed)


def test_a_state_of_another_interpolation_is_refused():
  host, other = Host(PRIMAL), Host(PRIMAL, averaging_interpolation=0.8)
  with pytest.raises(
    ValueError, match=r'interpolation=0.8, this submission has averaging_inter'
  ):
    host.state[1].own(other.state[0])


def test_a_probe_that_cannot_be():
  host = Host(AUTO, averaging_probe_examples=17)
  with pytest.raises(
    ValueError, match=r'averaging_probe_examples=17. Must be at most the batch'
  ):
    host.update()

  class Broken(jax_host.Workload):
    def model_fn(self, *args, mode, **kwargs):
      if mode == spec.ForwardPassMode.EVAL:
        raise RuntimeError('no evaluation')
      return super().model_fn(*args, mode=mode, **kwargs)

  host = Host(AUTO, workload=Broken())
  with pytest.raises(
    ValueError, match='loss of Broken cannot be computed in evaluation mode'
  ):
    host.update()
