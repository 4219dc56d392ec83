"""A workload of milliseconds, and a way to run it through lab.run.

The model has what makes resuming hard: BatchNorm statistics, dropout drawn
from torch's global generator, and an endless stream of batches.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lab import workloads
from lab.run import runner
from lab.run.distributed import Context
from lab.run.settings import Settings
from weightavg import spec

NAME = 'fake'


class Killed(BaseException):
  """Stands for the end of the process; nothing in the runner catches it."""


class _Model(nn.Module):
  def __init__(self) -> None:
    super().__init__()
    self.hidden = nn.Linear(8, 16)
    self.norm = nn.BatchNorm1d(16)
    self.head = nn.Linear(16, 1)

  def forward(self, inputs, dropout_rate):
    x = torch.relu(self.norm(self.hidden(inputs)))
    return self.head(nn.functional.dropout(x, dropout_rate, self.training))


class Queue(Iterator):
  """Batches by number, sliced for this rank."""

  def __init__(self, seed: int, size: int) -> None:
    self.seed, self.size, self.position = seed, size, 0

  def __next__(self) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(self.seed + self.position)
    self.position += 1
    inputs = torch.randn(self.size, 8, generator=generator)
    noise = torch.randn(self.size, 1, generator=generator)
    targets = inputs.sum(1, keepdim=True).sin() + 0.1 * noise
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    return {
      'inputs': inputs.chunk(ranks)[rank],
      'targets': targets.chunk(ranks)[rank],
    }


class QueueWithSkip(Queue):
  """The same batches, with a short way past them."""

  def skip(self, n: int) -> None:
    self.position += n


class Workload(spec.Workload):
  """Regression on an endless stream; `on` is called at named moments."""

  target_metric_name = 'loss'
  higher_is_better = False
  validation_target_value = 0.0
  test_target_value = 0.0
  loss_type = spec.LossType.MEAN_SQUARED_ERROR
  num_train_examples = 1000
  eval_batch_size = 64
  num_eval_train_examples = 64
  num_validation_examples = 64
  num_test_examples = 64
  train_mean = 0.0
  train_stddev = 1.0
  max_allowed_runtime_sec = 1000
  eval_period_time_sec = 1
  step_hint = 20
  eval_every_steps = 5
  queue: type[Queue] = QueueWithSkip

  def on(self, moment: str, step: int) -> None:
    """Hook for tests: 'update', 'prepare', 'evaluate' and the step."""

  def has_reached_validation_target(self, eval_result):
    return eval_result['validation/loss'] < self.validation_target_value

  def has_reached_test_target(self, eval_result):
    return eval_result['test/loss'] < self.test_target_value

  def _build_input_queue(
    self,
    data_rng,
    split,
    data_dir,
    global_batch_size,
    cache=None,
    repeat_final_dataset=None,
    num_batches=None,
  ) -> Any:
    return self.queue(int(data_rng[0]), global_batch_size)

  def init_model_fn(self, rng):
    torch.manual_seed(int(rng[0]))
    model = _Model()
    self._param_shapes = {k: p.shape for k, p in model.named_parameters()}
    self._param_types = {
      k: spec.ParameterType.WEIGHT for k, _ in model.named_parameters()
    }
    if dist.is_initialized() and dist.get_world_size() > 1:
      return nn.parallel.DistributedDataParallel(model), None
    return model, None

  def is_output_params(self, param_key):
    return 'head' in param_key

  def model_fn(
    self,
    params,
    augmented_and_preprocessed_input_batch,
    model_state,
    mode,
    rng,
    update_batch_norm,
    dropout_rate=0.0,
  ):
    train = mode == spec.ForwardPassMode.TRAIN
    params.train(train)
    with torch.set_grad_enabled(train):
      inputs = augmented_and_preprocessed_input_batch['inputs']
      return params(inputs, dropout_rate), model_state

  def loss_fn(
    self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0
  ):
    losses = (logits_batch - label_batch).square().mean(1)
    return {
      'summed': losses.sum(),
      'n_valid_examples': torch.tensor(float(len(losses))),
      'per_example': losses,
    }

  def _eval_model_on_split(
    self,
    split,
    num_examples,
    global_batch_size,
    params,
    model_state,
    rng,
    data_dir,
    global_step=0,
  ):
    if split == 'validation':
      self.on('evaluate', global_step)
    # Evaluations that draw random numbers must not disturb training.
    torch.rand(7)
    batch = next(Queue(len(split), num_examples))
    logits, _ = self.model_fn(
      params, batch, model_state, spec.ForwardPassMode.EVAL, rng, False
    )
    loss = self.loss_fn(batch['targets'], logits)['per_example'].mean()
    if dist.is_initialized() and dist.get_world_size() > 1:
      dist.all_reduce(loss)
      loss /= dist.get_world_size()
    return {'loss': loss}


def register(
  monkeypatch: Any = None, name: str = NAME, **attributes: Any
) -> type[Workload]:
  """Make the fake workload known to the runner under a name.

  Under the name of a local workload it has a batch size of its own, as that
  has; otherwise the submission must know one.
  """
  if name in workloads.WORKLOADS:
    attributes = {'batch_size': 128, **attributes}
  kind = type('FakeWorkload', (Workload,), {'name': name, **attributes})
  build = workloads.build_workload

  def build_workload(asked: str) -> Any:
    return kind() if asked == name else build(asked)

  names = {**workloads.WORKLOADS, name: 'fakes:Workload'}
  if monkeypatch is None:
    workloads.WORKLOADS = names
    workloads.build_workload = build_workload
  else:
    monkeypatch.setattr(workloads, 'WORKLOADS', names)
    monkeypatch.setattr(workloads, 'build_workload', build_workload)
  return kind


SUBMISSION = pathlib.Path(__file__).with_name('fake_submission.py').read_text()
POINTS = [
  {'learning_rate': 0.05, 'decay': 0.8},
  {'learning_rate': 0.01, 'decay': 0.5},
]


def settings(folder: Any, **changes: Any) -> Settings:
  """Settings of a run in `folder`, the working directory."""
  path = changes.get('submission_path') or write_submission(folder)
  return Settings(
    **{
      'workload': NAME,
      'tuning_search_space': 'space.json',
      'experiment_dir': 'runs',
      'experiment_name': 'x',
      'rng_seed': 0,
      **changes,
      'submission_path': path,
    }
  )


def run(folder: Any, context: Context | None = None, **changes: Any) -> Any:
  """Run in this process; the final state of the first trial."""
  chosen = settings(folder, **changes)
  return runner.run(chosen, context or Context(), dataclasses.asdict(chosen))[0]


def environment() -> dict[str, str]:
  """Environment of a process that runs this file as the runner."""
  root = pathlib.Path(__file__).parents[2]
  return {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}


def tree(folder: Any) -> dict[str, bytes]:
  """Every file below a folder, and what it holds."""
  return {
    str(path): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file() and '__pycache__' not in path.parts
  }


def differences(a: Any, b: Any, where: str = 'state') -> list[str]:
  """Paths at which two nested states differ in a single bit."""
  if isinstance(a, dict) and isinstance(b, dict):
    if a.keys() != b.keys():
      return [where]
    parts = [differences(a[k], b[k], f'{where}/{k}') for k in a]
    return [path for part in parts for path in part]
  if isinstance(a, list | tuple) and isinstance(b, list | tuple):
    if len(a) != len(b):
      return [where]
    return differences(dict(enumerate(a)), dict(enumerate(b)), where)
  if isinstance(a, torch.Tensor):
    return [] if torch.equal(a, b) and a.dtype == b.dtype else [where]
  return [] if a == b else [where]


def write_submission(folder: Any, text: str = SUBMISSION) -> str:
  """Write a submission below `folder`; its path relative to it.

  The package is named after the folder: modules of earlier tests stay
  imported in this process.
  """
  package = folder / f'package_{folder.name}_{abs(hash(str(folder)))}'
  package.mkdir(exist_ok=True)
  (package / 'submission.py').write_text(text)
  return os.path.join(package.name, 'submission.py')


if __name__ == '__main__':
  register()
  runner.main()
