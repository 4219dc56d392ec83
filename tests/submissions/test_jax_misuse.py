"""Points and states that the submissions in JAX refuse."""

import numpy as np
import pytest
from jax_submissions import AUTO, PRIMAL, REFRESHED, Host
from jax_support import import_jax

jax = import_jax('jax')
jax_host = import_jax('jax_host')
spec = import_jax('weightavg.spec')


def test_a_momentum_beside_the_average_warns():
  with pytest.warns(UserWarning, match='nadamw has another one of 0.9. Set '):
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
      {'averaging_placement': 'sharded', 'averaging_checkpoints': False},
      'Invalid averaging_checkpoints=False. It has no effect in JAX without a',
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


EMAS = 'ema 0.5, polynomial 4, ema 0.01'


@pytest.mark.parametrize(
  ('folder', 'key', 'own', 'other'),
  [
    (PRIMAL, 'averaging_interpolation', 0.9, 0.8),
    ('nadamw_ema_jax', 'learning_rate', 0.1, 0.2),
    ('nadamw_ema_jax', 'averaging_horizon', 0.01, 0.02),
    (REFRESHED, 'averaging_batch_norm', 'refreshed', 'averaged'),
    (AUTO, 'averaging_candidates', EMAS, 'ema 0.01, polynomial 4, ema 0.5'),
  ],
)
def test_a_state_of_another_point_is_refused(folder, key, own, other):
  host, saved = Host(folder, **{key: own}), Host(folder, **{key: other})
  with pytest.raises(
    ValueError, match=f'Invalid checkpoint: saved with {key}=.*has {key}='
  ):
    host.state[1].own(saved.state[0])
  # Copies of its own it takes, and where the average is kept may change.
  host.state[1].own(jax.tree.map(np.array, host.state[0]))
  if folder == 'nadamw_ema_jax':
    sharded = Host(folder, **{key: own}, averaging_placement='sharded')
    sharded.state[1].own(jax.tree.map(np.array, host.state[0]))


def test_a_state_of_another_dtype_is_refused():
  host = Host('nadamw_ema_jax')

  def narrow(leaf):
    leaf = np.array(leaf)
    return leaf.astype(np.float16) if leaf.dtype == np.float32 else leaf

  with pytest.raises(
    ValueError,
    match=r"params\['bias'\] is float16, this submission has float32",
  ):
    host.state[1].own(jax.tree.map(narrow, host.state[0]))
  damaged = host.state[0]._replace(point=np.zeros(3, np.uint8))
  with pytest.raises(ValueError, match='its point cannot be read'):
    host.state[1].own(damaged)


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
