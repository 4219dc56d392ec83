"""Loading of a submission by its path, as the benchmark does."""

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from absl import logging

from lab.core.errors import InputError

REQUIRED = (
  'init_optimizer_state',
  'update_params',
  'data_selection',
  'get_batch_size',
)


@dataclasses.dataclass(frozen=True)
class Submission:
  """The functions of a submission module.

  Args:
    path: Where it was loaded from.
    module: The module itself.
  """

  path: str
  module: Any

  def __getattr__(self, name: str) -> Callable[..., Any]:
    if name not in REQUIRED:
      raise AttributeError(name)
    return getattr(self.module, name)

  @property
  def prepare_for_eval(self) -> Callable[..., Any] | None:
    """The function, or None where the module has none."""
    return getattr(self.module, 'prepare_for_eval', None)

  @property
  def prepare_for_checkpoint(self) -> Callable[..., Any] | None:
    """Called for a checkpoint between two evaluations.

    The module's own where it has one: a submission that chooses at each
    evaluation doesn't choose there. `prepare_for_eval` otherwise.
    """
    return getattr(self.module, 'prepare_for_checkpoint', self.prepare_for_eval)

  @property
  def is_of_pytorch(self) -> bool:
    """True where the step is this package's in PyTorch."""
    return self.update_params.__module__.startswith('weightavg.pytorch')

  @property
  def needs_train_state(self) -> bool:
    """True if `update_params` takes `train_state`."""
    return 'train_state' in inspect.signature(self.update_params).parameters

  def batch_size(
    self, workload_name: str, known: list[str], own: int | None = None
  ) -> int:
    """Global batch size: the submission's, the workload's own, or its base's.

    Args:
      workload_name: Name of the workload.
      known: All names; the base of `a_b` is the longest of them, as `a`.
      own: The workload's own, for names that the submission does not know.

    Raises:
      InputError: the submission knows neither the workload nor its base.
    """
    try:
      return self.get_batch_size(workload_name)
    except ValueError as error:
      message = str(error)
    if own is not None:
      return own
    bases = [name for name in known if workload_name.startswith(f'{name}_')]
    if bases:
      try:
        return self.get_batch_size(max(bases, key=len))
      except ValueError as error:
        message = str(error)
    raise InputError(
      f'{self.path} has no batch size for {workload_name}: {message}'
    )


def module_name(path: str) -> str:
  """Dotted name of a path relative to the working directory.

  >>> module_name('submissions/nadamw_ema/submission.py')
  'submissions.nadamw_ema.submission'
  """
  relative = os.path.relpath(path) if os.path.isabs(path) else path
  root, _ = os.path.splitext(os.path.normpath(relative))
  return root.replace(os.sep, '.')


def load(path: str) -> Submission:
  """Import the submission in a file.

  Args:
    path: A Python file below the working directory.

  Raises:
    InputError: no such file, not importable as a module from here, or a
      required function is missing.
  """
  if not os.path.isfile(path) or not path.endswith('.py'):
    raise InputError(
      f'Invalid submission_path={path}. Must be an existing .py file.'
    )
  name = module_name(path)
  if not all(part.isidentifier() for part in name.split('.')):
    raise InputError(
      f'Invalid submission_path={path}. Must be a path below the working '
      'directory whose parts are Python identifiers.'
    )
  if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  try:
    module = importlib.import_module(name)
  except (ImportError, SyntaxError) as error:
    raise InputError(
      f'Cannot import submission_path={path}: {error}.'
    ) from error
  found = getattr(module, '__file__', None)
  if found is None or not os.path.samefile(found, path):
    raise InputError(
      f'Cannot import submission_path={path}: the module {name} is {found}.'
    )
  missing = [
    key for key in REQUIRED if not callable(getattr(module, key, None))
  ]
  if missing:
    raise InputError(
      f'Invalid submission_path={path}. Must define {", ".join(REQUIRED)}; '
      f'{", ".join(missing)} not found.'
    )
  submission = Submission(path, module)
  if submission.prepare_for_eval is None:
    logging.warning(
      '%s defines no prepare_for_eval: it is evaluated on the weights that '
      'update_params returns.',
      path,
    )
  return submission
