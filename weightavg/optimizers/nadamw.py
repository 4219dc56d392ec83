"""NadamW's hyperparameters, under the names of AlgoPerf's search spaces."""

import dataclasses

from weightavg.config_fields import REQUIRED, check_fields, config_field

# AlgoPerf's published point 5.
# The schedule has the length that it was tuned with, or what the time allows.
SELF_TUNING_POINT = {
  'learning_rate': 0.0017486387539278373,
  'one_minus_beta1': 0.06733926164,
  'beta2': 0.9955159689799007,
  'weight_decay': 0.08121616522670176,
  'warmup_factor': 0.02,
  'dropout_rate': 0.1,
  'budget': 'clock',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NadamWConfig:
  """NadamW's hyperparameters, as AlgoPerf's search spaces name them."""

  learning_rate: float = config_field(REQUIRED, float, '(0, inf)', 'peak')
  one_minus_beta1: float = config_field(
    0.1, float, '(0, 1]', 'of the first moment; beta1 = 0 is allowed'
  )
  beta2: float = config_field(0.999, float, '[0, 1)', 'of the second moment')
  weight_decay: float = config_field(0.0, float, '[0, inf)', 'decoupled')
  epsilon: float = config_field(
    1e-8, float, '(0, inf)', 'added to the denominator'
  )
  fused: str | None = config_field(
    None, str, ('compile',), 'torch.compile makes one kernel of the step'
  )

  def __post_init__(self) -> None:
    check_fields(self)
