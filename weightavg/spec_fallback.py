"""AlgoPerf's Workload contract for machines on which it is not installed.

Same names, members and call signatures as `algoperf.spec` (API of 2025-09), so
that a submission cannot tell the two apart. Use it through `weightavg.spec`.
"""

import abc
import enum
from collections.abc import Iterator
from typing import Any


class LossType(enum.Enum):
  """Loss that a workload is trained with."""

  SOFTMAX_CROSS_ENTROPY = 0
  SIGMOID_CROSS_ENTROPY = 1
  MEAN_SQUARED_ERROR = 2
  CTC_LOSS = 3
  MEAN_ABSOLUTE_ERROR = 4


class ForwardPassMode(enum.Enum):
  """Mode of `model_fn`: training or evaluation."""

  TRAIN = 0
  EVAL = 1


class ParameterType(enum.Enum):
  """The role of a parameter in its layer."""

  WEIGHT = 0
  BIAS = 1
  CONV_WEIGHT = 2
  BATCH_NORM_SCALE = 3
  BATCH_NORM_BIAS = 4
  LAYER_NORM_SCALE = 5
  LAYER_NORM_BIAS = 6
  EMBEDDING = 7
  ATTENTION_Q = 8
  ATTENTION_K = 9
  ATTENTION_V = 10
  ATTENTION_OUT = 11
  ATTENTION_QKV = 12
  ATTENTION_KV = 13
  ATTENTION_BIAS = 14


class TrainingCompleteError(Exception):
  """Raised by a submission that wants its run to end now."""


class Workload(abc.ABC):
  """A model, its data, its metric and the targets that a run must reach."""

  def __init__(self, *args: Any, **kwargs: Any) -> None:
    del args, kwargs
    self._param_shapes: Any = None
    self._param_types: Any = None
    self._eval_iters: dict[str, Iterator] = {}
    self.metrics_logger: Any = None

  def attach_metrics_logger(self, metrics_logger: Any) -> None:
    """Give the workload the logger that submissions write to."""
    self.metrics_logger = metrics_logger

  @property
  @abc.abstractmethod
  def target_metric_name(self) -> str:
    """Key of the metric that the targets speak of."""

  @abc.abstractmethod
  def has_reached_validation_target(self, eval_result: dict) -> bool:
    """True if an evaluation reached the validation target."""

  @abc.abstractmethod
  def has_reached_test_target(self, eval_result: dict) -> bool:
    """True if an evaluation reached the test target."""

  @abc.abstractmethod
  def _build_input_queue(
    self,
    data_rng: Any,
    split: str,
    data_dir: str,
    global_batch_size: int,
    cache: bool | None = None,
    repeat_final_dataset: bool | None = None,
    num_batches: int | None = None,
  ) -> Iterator[dict[str, Any]]:
    """Batches of a split; for the runner, never for a submission."""

  @property
  @abc.abstractmethod
  def validation_target_value(self) -> float:
    """Value of the metric at which the validation target is reached."""

  @property
  @abc.abstractmethod
  def test_target_value(self) -> float:
    """Value of the metric at which the test target is reached."""

  @property
  @abc.abstractmethod
  def loss_type(self) -> LossType:
    """The loss that `loss_fn` computes."""

  @property
  @abc.abstractmethod
  def num_train_examples(self) -> int:
    """Number of training examples."""

  @property
  @abc.abstractmethod
  def eval_batch_size(self) -> int:
    """Global batch size of evaluations."""

  @property
  @abc.abstractmethod
  def num_eval_train_examples(self) -> int:
    """Number of training examples that an evaluation looks at."""

  @property
  @abc.abstractmethod
  def num_validation_examples(self) -> int:
    """Number of validation examples."""

  @property
  @abc.abstractmethod
  def num_test_examples(self) -> int:
    """Number of test examples."""

  @property
  @abc.abstractmethod
  def train_mean(self) -> Any:
    """Mean of the training inputs."""

  @property
  @abc.abstractmethod
  def train_stddev(self) -> Any:
    """Standard deviation of the training inputs."""

  @property
  @abc.abstractmethod
  def max_allowed_runtime_sec(self) -> int:
    """Submission time after which a run is over, in seconds."""

  @property
  @abc.abstractmethod
  def eval_period_time_sec(self) -> int:
    """Time between two evaluations, in seconds."""

  @property
  @abc.abstractmethod
  def step_hint(self) -> int:
    """Steps that the baseline makes in the allowed time."""

  @property
  def param_shapes(self) -> Any:
    """Shapes of the model's parameters."""
    if self._param_shapes is None:
      raise ValueError('Call init_model_fn() before param_shapes.')
    return self._param_shapes

  @property
  def model_params_types(self) -> Any:
    """Roles of the model's parameters."""
    if self._param_types is None:
      raise ValueError('Call init_model_fn() before model_params_types.')
    return self._param_types

  @abc.abstractmethod
  def is_output_params(self, param_key: str) -> bool:
    """True if a parameter belongs to the output layer."""

  @abc.abstractmethod
  def init_model_fn(self, rng: Any) -> tuple[Any, Any]:
    """Return (model, model_state)."""

  @abc.abstractmethod
  def model_fn(
    self,
    params: Any,
    augmented_and_preprocessed_input_batch: dict[str, Any],
    model_state: Any,
    mode: ForwardPassMode,
    rng: Any,
    update_batch_norm: bool,
    dropout_rate: float,
  ) -> tuple[Any, Any]:
    """Return (logits, model_state)."""

  @abc.abstractmethod
  def loss_fn(
    self,
    label_batch: Any,
    logits_batch: Any,
    mask_batch: Any = None,
    label_smoothing: float = 0.0,
  ) -> dict[str, Any]:
    """Return the loss: 'summed', 'n_valid_examples' and 'per_example'."""

  @abc.abstractmethod
  def _eval_model_on_split(
    self,
    split: str,
    num_examples: int,
    global_batch_size: int,
    params: Any,
    model_state: Any,
    rng: Any,
    data_dir: str,
    global_step: int = 0,
  ) -> dict[str, float]:
    """Metrics of the model on one split."""

  def eval_model(
    self,
    global_batch_size: int,
    params: Any,
    model_state: Any,
    rng: Any,
    data_dir: str,
    imagenet_v2_data_dir: str | None,
    global_step: int,
  ) -> dict[str, float]:
    """Metrics on all splits, keyed '<split>/<metric>'."""
    sizes = {
      'eval_train': self.num_eval_train_examples,
      'validation': self.num_validation_examples,
      'test': self.num_test_examples,
    }
    results: dict[str, float] = {}
    for split, num_examples in sizes.items():
      test_dir = imagenet_v2_data_dir if split == 'test' else None
      metrics = self._eval_model_on_split(
        split=split,
        num_examples=num_examples,
        global_batch_size=global_batch_size,
        params=params,
        model_state=model_state,
        rng=rng,
        data_dir=test_dir or data_dir,
        global_step=global_step,
      )
      prefix = 'train' if split == 'eval_train' else split
      results.update({f'{prefix}/{k}': v for k, v in metrics.items()})
      if split != 'eval_train':
        results[f'{prefix}/num_examples'] = num_examples
    return results
