"""Distributed Shampoo's hyperparameters, under the names of search spaces."""

import dataclasses

from weightavg.config_fields import REQUIRED, check_fields, config_field

# Point 1 of the winning Shampoo submission, tuned as NadamW's.
# The schedule has the length that it was tuned with, or what the time allows.
SELF_TUNING_POINT = {
  'learning_rate': 0.0017486387539278373,
  'one_minus_beta1': 0.06733926164,
  'one_minus_beta2': 0.00448403102,
  'weight_decay': 0.08121616522670176,
  'warmup_factor': 0.02,
  'dropout_rate': 0.1,
  'budget': 'clock',
}

# The winning Shampoo submission trained the speech workloads so.
BATCH_SIZES = {'librispeech_conformer': 200, 'librispeech_deepspeech': 224}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShampooConfig:
  """Distributed Shampoo's hyperparameters; the factors' decay is grafting's."""

  learning_rate: float = config_field(REQUIRED, float, '(0, inf)', 'peak')
  one_minus_beta1: float = config_field(
    0.1, float, '(0, 1]', 'of the first moment; 1: none'
  )
  one_minus_beta2: float = config_field(
    0.001, float, '[0, 1)', 'of factors and grafting; 0: sums'
  )
  one_minus_momentum: float = config_field(
    1.0, float, '(0, 1]', 'of the averaged, Nesterov momentum; 1: none'
  )
  weight_decay: float = config_field(0.0, float, '[0, inf)', 'decoupled')
  epsilon: float = config_field(
    1e-8, float, '(0, inf)', "added to factors' spectra"
  )
  grafting: str = config_field(
    'adam', str, ('adam', 'adagrad', 'rmsprop', 'sgd'), 'gives the step size'
  )
  grafting_epsilon: float = config_field(
    1e-8, float, '[0, inf)', "added to grafting's denominator"
  )
  use_nadam: bool = config_field(
    True, bool, (True, False), 'Nesterov look-ahead of the first moment'
  )
  max_preconditioner_dim: int = config_field(
    1024, int, '[1, inf)', 'largest side of a block'
  )
  precondition_frequency: int = config_field(
    100, int, '[1, inf)', 'steps between inverse roots'
  )
  start_preconditioning_step: int = config_field(
    -1, int, '[-1, inf)', 'first step with roots; -1: precondition_frequency'
  )
  inv_root_override: int = config_field(
    0, int, '[0, inf)', 'root taken; 0: twice the order of the block'
  )
  exponent_multiplier: float = config_field(
    1.0, float, '(0, inf)', "on the root's exponent"
  )
  spread_roots: bool = config_field(
    False, bool, (True, False), 'roots of different blocks in different steps'
  )
  num_trainers_per_group: int = config_field(
    -1, int, '[-1, inf)', 'ranks that share the work; -1: all'
  )
  communication_dtype: str = config_field(
    'float32', str, ('float32', 'bfloat16'), 'of what ranks exchange'
  )
  skip_nonfinite_gradients: bool = config_field(
    False, bool, (True, False), 'skip such a step instead of ending the run'
  )

  def __post_init__(self) -> None:
    check_fields(self)
