"""AlgoPerf's contract, implemented once for all local workloads.

A workload names its data, its model and its metric; this class does the rest:
devices, DDP, input queues, masked losses, evaluation and targets.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lab.core.host_types import is_training
from lab.workloads import stream, targets
from lab.workloads.device import distributed, local_device
from lab.workloads.modules import Shape, parameter_types
from weightavg import spec
from weightavg.pytorch.distributed import rank_and_world
from weightavg.pytorch.models import unwrap

# Salts: the splits of one workload never share a stream, whatever the seed.
_SALTS = {'train': 1, 'eval_train': 2, 'validation': 3, 'test': 4}
# Seed of everything that is held fixed: teachers, banks, evaluation splits.
FIXED_SEED = 20250206


def fixed_generator(*salt: int) -> np.random.Generator:
  """Return the generator of what is the same in every run."""
  return stream.generator_at(stream.philox_key([FIXED_SEED, *salt]), 0)


def masked_loss(
  per_example: torch.Tensor, mask: torch.Tensor | None
) -> dict[str, torch.Tensor]:
  """AlgoPerf's loss dictionary; a mask of shape [batch] covers all positions.

  Args:
    per_example: losses, [batch] or [batch, length].
    mask: weights, [batch] or the losses' shape; None counts everything.
  """
  if mask is None:
    n_valid = per_example.new_tensor(per_example.numel())
  else:
    mask = mask.to(per_example.dtype)
    mask = mask.reshape(mask.shape + (1,) * (per_example.ndim - mask.ndim))
    mask = mask.expand_as(per_example)
    per_example = per_example * mask
    n_valid = mask.sum()
  return {
    'summed': per_example.sum(),
    'n_valid_examples': n_valid,
    'per_example': per_example,
  }


class LocalWorkload(spec.Workload):
  """A small workload that needs no download.

  A subclass sets the class variables and defines `_make_model`,
  `_train_arrays`, `_fixed_data` and `loss_fn`; one with data of its own for
  evaluation `_split_arrays`, one with metrics beside the loss `_metric_sums`.

  Attributes:
    name: key in the registry.
    metric: key of the target metric.
    higher_is_better: direction of that metric.
    regularizers: which of dropout_rate and label_smoothing have an effect.
    steps: the step hint.
    batch_size: global batch size that the targets were set with.
    sizes: examples per split that an evaluation looks at.
    output_layer: prefix of the output layer's parameter names.
    epochs: passes over the training data in a full run, of which
      `num_train_examples` is one; 1 draws every batch anew, without end.
  """

  name: ClassVar[str]
  metric: ClassVar[str]
  higher_is_better: ClassVar[bool]
  loss_kind: ClassVar[spec.LossType]
  regularizers: ClassVar[tuple[str, ...]] = ('dropout_rate', 'label_smoothing')
  steps: ClassVar[int]
  batch_size: ClassVar[int]
  sizes: ClassVar[dict[str, int]]
  output_layer: ClassVar[str]
  evaluation_batch_size: ClassVar[int] = 512

  def __init__(self, *args: Any, **kwargs: Any) -> None:
    super().__init__(*args, **kwargs)
    self.epochs = 1
    self._splits: dict[str, dict[str, torch.Tensor]] = {}
    self._fingerprint: str | None = None
    self._device = local_device()

  # What a subclass defines.

  def _make_model(self) -> nn.Module:
    """Return a new model, initialised from torch's current seed."""
    raise NotImplementedError

  def _train_arrays(
    self, generator: np.random.Generator, size: int
  ) -> dict[str, np.ndarray]:
    """Draw `size` training examples."""
    raise NotImplementedError

  def _split_arrays(
    self, split: str, generator: np.random.Generator, size: int
  ) -> dict[str, np.ndarray]:
    """Fixed examples of an evaluation split; drawn as training ones unless
    the workload holds data out.
    """
    del split
    return self._train_arrays(generator, size)

  def _fixed_data(self) -> list[np.ndarray]:
    """Data whose change would change the targets, free of rounding."""
    raise NotImplementedError

  def _metric_sums(
    self, batch: stream.Batch, logits: torch.Tensor
  ) -> dict[str, torch.Tensor]:
    """Weighted sums over a batch of metrics other than the loss."""
    del batch, logits
    return {}

  # Size and time.

  @property
  def step_hint(self) -> int:
    """Steps of a full run."""
    return self.steps

  @property
  def eval_every_steps(self) -> int:
    """Steps between evaluations: 2 % of the step hint."""
    return max(1, round(0.02 * self.step_hint))

  @property
  def max_allowed_runtime_sec(self) -> int:
    """Generous: local runs are bounded by steps, so that they repeat."""
    return 3600

  @property
  def eval_period_time_sec(self) -> int:
    """Nominal; the local runner evaluates every `eval_every_steps`."""
    return 2

  @property
  def num_train_examples(self) -> int:
    """Examples of one epoch."""
    return self.steps * self.batch_size // self.epochs

  @property
  def num_eval_train_examples(self) -> int:
    """Fixed training examples that an evaluation looks at."""
    return self.sizes['eval_train']

  @property
  def num_validation_examples(self) -> int:
    """Validation examples."""
    return self.sizes['validation']

  @property
  def num_test_examples(self) -> int:
    """Test examples."""
    return self.sizes['test']

  @property
  def eval_batch_size(self) -> int:
    """Global batch size of evaluations."""
    return self.evaluation_batch_size

  @property
  def train_mean(self) -> Any:
    """Inputs come as the model wants them."""
    return 0.0

  @property
  def train_stddev(self) -> Any:
    """Inputs come as the model wants them."""
    return 1.0

  @property
  def loss_type(self) -> spec.LossType:
    """The loss that `loss_fn` computes."""
    return self.loss_kind

  # Targets.

  @property
  def target_metric_name(self) -> str:
    """Key of the metric that the targets speak of."""
    return self.metric

  @property
  def tuned_search_space(self) -> str:
    """Path of the tuned baseline's search space, relative to the root."""
    return f'tuning_search_spaces/local/{self.name}.json'

  @property
  def validation_target_value(self) -> float:
    """Median over seeds of the baseline's best in 75 % of the steps."""
    return targets.read(self)['validation_target']

  @property
  def test_target_value(self) -> float:
    """As the validation target, on the test split."""
    return targets.read(self)['test_target']

  def has_reached_validation_target(self, eval_result: dict) -> bool:
    """Return True if an evaluation beats the validation target."""
    value = eval_result[f'validation/{self.metric}']
    return self.is_better(value, self.validation_target_value)

  def has_reached_test_target(self, eval_result: dict) -> bool:
    """Return True if an evaluation beats the test target."""
    value = eval_result[f'test/{self.metric}']
    return self.is_better(value, self.test_target_value)

  def is_better(self, value: float, other: float) -> bool:
    """Return True if `value` of the metric beats `other`; NaN never does."""
    return value > other if self.higher_is_better else value < other

  def data_fingerprint(self) -> str:
    """Hash of the fixed data: which data the targets were set on."""
    # Asked for with every look at a target; megabytes are hashed once.
    if self._fingerprint is None:
      digest = hashlib.sha256()
      for array in self._fixed_data():
        digest.update(np.ascontiguousarray(array).tobytes())
      self._fingerprint = digest.hexdigest()[:16]
    return self._fingerprint

  # Data.

  def _split(self, split: str) -> dict[str, torch.Tensor]:
    if split not in self._splits:
      generator = fixed_generator(_SALTS[split])
      arrays = self._split_arrays(split, generator, self.sizes[split])
      self._splits[split] = {
        name: torch.as_tensor(array) for name, array in arrays.items()
      }
    return self._splits[split]

  def _build_input_queue(
    self,
    data_rng: Any,
    split: str,
    data_dir: str,
    global_batch_size: int,
    cache: bool | None = None,
    repeat_final_dataset: bool | None = None,
    num_batches: int | None = None,
  ) -> Iterator[stream.Batch]:
    """Endless batches of this rank, an iterator with O(1) `skip(n)`."""
    del data_dir, cache, repeat_final_dataset, num_batches
    if split not in _SALTS:
      raise ValueError(f'Invalid {split=}. Must be one of {[*_SALTS]}.')
    place = (self._device, *rank_and_world())
    if split != 'train':
      return stream.EvalStream(self._split(split), global_batch_size, *place)
    key = stream.philox_key(data_rng, _SALTS['train'])
    source = (self._train_arrays, key, global_batch_size, *place)
    if self.epochs == 1:
      return stream.TrainStream(*source)
    num_batches = self.num_train_examples // global_batch_size
    return stream.RepeatedStream(num_batches, *source)

  # Model.

  def init_model_fn(self, rng: Any) -> tuple[nn.Module, None]:
    """Return a new model, a function of rng[0] alone, wrapped under DDP."""
    torch.manual_seed(int(rng[0]))
    model = self._make_model()
    self._param_shapes = {
      name: Shape(tuple(p.shape)) for name, p in model.named_parameters()
    }
    self._param_types = parameter_types(model)
    model.to(self._device)
    if distributed():
      ids = [self._device.index] if self._device.type == 'cuda' else None
      return DistributedDataParallel(model, device_ids=ids), None
    return model, None

  def is_output_params(self, param_key: str) -> bool:
    """Return True for a parameter of the output layer."""
    for prefix in ('_orig_mod.', 'module.'):
      param_key = param_key.removeprefix(prefix)
    return param_key.startswith(f'{self.output_layer}.')

  def model_fn(
    self,
    params: nn.Module,
    augmented_and_preprocessed_input_batch: stream.Batch,
    model_state: Any,
    mode: spec.ForwardPassMode,
    rng: Any,
    update_batch_norm: bool,
    dropout_rate: float = 0.0,
  ) -> tuple[torch.Tensor, None]:
    """Logits. Dropout draws from torch's generator, seeded by the runner.

    Args:
      params: the model, plain, DDP or compiled.
      augmented_and_preprocessed_input_batch: with the key 'inputs'.
      model_state: unused, BatchNorm's statistics are buffers of the model.
      mode: TRAIN or EVAL (no gradients, no dropout).
      rng: unused.
      update_batch_norm: whether a TRAIN pass moves the running statistics.
      dropout_rate: in [0, 1).
    """
    del model_state, rng
    train = is_training(mode)
    inner = unwrap(params)
    if inner.training != train:
      params.train(train)
      inner.train(train)
    for module in inner.modules():
      if isinstance(module, nn.modules.batchnorm._BatchNorm):
        # In training mode an untracked layer normalises by the batch and
        # leaves its statistics alone; in evaluation it must use them.
        module.track_running_stats = update_batch_norm or not train
    with torch.set_grad_enabled(train and torch.is_grad_enabled()):
      inputs = augmented_and_preprocessed_input_batch['inputs']
      return params(inputs, dropout_rate), None

  # Evaluation.

  def _eval_model_on_split(
    self,
    split: str,
    num_examples: int,
    global_batch_size: int,
    params: nn.Module,
    model_state: Any,
    rng: Any,
    data_dir: str,
    global_step: int = 0,
  ) -> dict[str, float]:
    """Metrics of a whole split, the same on every rank."""
    del global_step
    queue = self._build_input_queue(rng, split, data_dir, global_batch_size)
    totals: dict[str, torch.Tensor] = {}
    for _ in range(-(-num_examples // global_batch_size)):
      batch = next(queue)
      logits, _ = self.model_fn(
        params, batch, model_state, spec.ForwardPassMode.EVAL, rng, False
      )
      loss = self.loss_fn(batch['targets'], logits, batch['weights'])
      sums = self._metric_sums(batch, logits) | {
        'loss': loss['summed'],
        'count': loss['n_valid_examples'],
      }
      for key, value in sums.items():
        # float64: sums over 10^4 examples must not lose what averaging gains.
        totals[key] = totals.get(key, 0) + value.double()
    names = sorted(totals)
    stacked = torch.stack([totals[key] for key in names])
    if distributed():
      dist.all_reduce(stacked)
    result = dict(zip(names, stacked.tolist(), strict=True))
    count = result.pop('count')
    return {key: value / count for key, value in result.items()}
