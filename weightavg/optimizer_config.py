"""Hyperparameters of the optimizers, under the names of search spaces."""

import dataclasses

from weightavg.config_fields import REQUIRED, check_knobs, knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class NadamWConfig:
  """NadamW's hyperparameters, as AlgoPerf's search spaces name them."""

  learning_rate: float = knob(REQUIRED, float, '(0, inf)', 'peak')
  one_minus_beta1: float = knob(
    0.1, float, '(0, 1]', 'of the first moment; beta1 = 0 is allowed'
  )
  beta2: float = knob(0.999, float, '[0, 1)', 'of the second moment')
  weight_decay: float = knob(0.0, float, '[0, inf)', 'decoupled')
  epsilon: float = knob(1e-8, float, '(0, inf)', 'added to the denominator')
  fused: str | None = knob(
    None, str, ('compile',), 'torch.compile makes one kernel of the step'
  )

  def __post_init__(self) -> None:
    check_knobs(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShampooConfig:
  """Distributed Shampoo's hyperparameters; the factors' decay is grafting's."""

  learning_rate: float = knob(REQUIRED, float, '(0, inf)', 'peak')
  one_minus_beta1: float = knob(
    0.1, float, '(0, 1]', 'of the first moment; 1: none'
  )
  one_minus_beta2: float = knob(
    0.001, float, '[0, 1)', 'of factors and grafting; 0: sums'
  )
  one_minus_momentum: float = knob(
    1.0, float, '(0, 1]', 'of the averaged, Nesterov momentum; 1: none'
  )
  weight_decay: float = knob(0.0, float, '[0, inf)', 'decoupled')
  epsilon: float = knob(1e-8, float, '(0, inf)', "added to factors' spectra")
  grafting: str = knob(
    'adam', str, ('adam', 'adagrad', 'rmsprop', 'sgd'), 'gives the step size'
  )
  grafting_epsilon: float = knob(
    1e-8, float, '[0, inf)', "added to grafting's denominator"
  )
  use_nadam: bool = knob(
    True, bool, (True, False), 'Nesterov look-ahead of the first moment'
  )
  max_preconditioner_dim: int = knob(
    1024, int, '[1, inf)', 'largest side of a block'
  )
  precondition_frequency: int = knob(
    100, int, '[1, inf)', 'steps between inverse roots'
  )
  start_preconditioning_step: int = knob(
    -1, int, '[-1, inf)', 'first step with roots; -1: precondition_frequency'
  )
  inv_root_override: int = knob(
    0, int, '[0, inf)', 'root taken; 0: twice the order of the block'
  )
  exponent_multiplier: float = knob(
    1.0, float, '(0, inf)', "on the root's exponent"
  )
  spread_roots: bool = knob(
    False, bool, (True, False), 'roots of different blocks in different steps'
  )
  num_trainers_per_group: int = knob(
    -1, int, '[-1, inf)', 'ranks that share the work; -1: all'
  )
  communication_dtype: str = knob(
    'float32', str, ('float32', 'bfloat16'), 'of what ranks exchange'
  )
  skip_nonfinite_gradients: bool = knob(
    False, bool, (True, False), 'skip such a step instead of ending the run'
  )

  def __post_init__(self) -> None:
    check_knobs(self)


OPTIMIZER_CONFIGS = {'nadamw': NadamWConfig, 'shampoo': ShampooConfig}

# AlgoPerf's published point 5 of NadamW, and the winning Shampoo submission's
# point 1, tuned alike; the self-tuning ruleset allows one and a half times the
# budget.
SELF_TUNING_POINTS: dict[str, dict[str, float]] = {
  'nadamw': {
    'learning_rate': 0.0017486387539278373,
    'one_minus_beta1': 0.06733926164,
    'beta2': 0.9955159689799007,
    'weight_decay': 0.08121616522670176,
    'warmup_factor': 0.02,
    'dropout_rate': 0.1,
    'step_hint_factor': 1.5,
  },
  'shampoo': {
    'learning_rate': 0.0017486387539278373,
    'one_minus_beta1': 0.06733926164,
    'one_minus_beta2': 0.00448403102,
    'weight_decay': 0.08121616522670176,
    'warmup_factor': 0.02,
    'dropout_rate': 0.1,
    'step_hint_factor': 1.5,
  },
}
