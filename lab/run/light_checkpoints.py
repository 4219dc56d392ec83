"""Keep light checkpoints and post-hoc accumulators of a run for lab.offline.

A trial's folder `weights` holds step_<n>.safetensors with the model's state
under clean names: raw weights, whatever average evaluation sees. Its folder
`posthoc` is described in `lab.offline.run_accumulators`.
"""

import importlib.util
import os
from typing import Any

from torch import nn

from lab.core import checksums
from lab.core.errors import InputError
from lab.core.light_files import FOLDER, path_of, steps
from lab.run.settings import Settings
from weightavg.pytorch.models import clean_name, unwrap
from weightavg.pytorch.profiling import section


def save(
  model: nn.Module, directory: str, step: int, keep: int | None = None
) -> str:
  """Write the weights; call it on rank 0 only, outside of evaluations.

  Args:
    model: wrapped or not.
    directory: the trial's.
    step: updates made so far.
    keep: how many of the latest stay; None: all.

  Raises:
    InputError: the file cannot be written; nothing is left of it.
  """
  # Needs safetensors, which a plain run does without.
  from lab.offline import writers

  os.makedirs(os.path.join(directory, FOLDER), exist_ok=True)
  state = unwrap(model).state_dict()
  path = path_of(directory, step)
  named = [(clean_name(name), tensor) for name, tensor in state.items()]
  writers.save(path, named, {'step': step})
  try:
    checksums.record(path, [checksums.of_file(path)])
  except OSError as error:
    raise InputError(f'Cannot write {path}: {error.strerror}.') from error
  if keep is not None:
    # A resumed run may find files of steps that it has yet to make again.
    for old in [s for s in steps(directory) if s <= step][:-keep]:
      checksums.remove(path_of(directory, old))
  return path


def check(settings: Settings, budget: int) -> None:
  """Raise InputError if what the flags ask for cannot be kept.

  Args:
    settings: the command line.
    budget: steps of the run.
  """
  every = settings.posthoc_every
  if not (settings.save_every or every):
    return
  if importlib.util.find_spec('safetensors') is None:
    raise InputError(
      'Invalid flags: --save_every and --posthoc_every need safetensors. '
      "Run: pip install -e '.[lab]'"
    )
  if every is not None and every > budget:
    raise InputError(
      f'Invalid posthoc_every={every}. Must be in [1, {budget}], the budget.'
    )


def damage(settings: Settings, directory: str, step: int) -> str | None:
  """Return why the accumulators cannot resume at a step, or None.

  Args:
    settings: the command line.
    directory: the trial's.
    step: of a checkpoint.
  """
  if settings.posthoc_every is None:
    return None
  from lab.offline import run_accumulators

  return run_accumulators.damage(directory, step)


class Keeper:
  """Keeps what the flags of a run ask for; on rank 0 only.

  Args:
    settings: the command line.
    directory: the trial's.
    model: what is trained, wrapped or not.
    resumed_at: step of the checkpoint that the run goes on from, if it does.

  Raises:
    InputError: the accumulators cannot continue from that checkpoint.
  """

  def __init__(
    self,
    settings: Settings,
    directory: str,
    model: nn.Module,
    resumed_at: int | None,
  ) -> None:
    self._settings, self._directory = settings, directory
    self._accumulators: Any = None
    if settings.posthoc_every is not None:
      from lab.offline.run_accumulators import RunAccumulators

      self._accumulators = RunAccumulators(
        model, directory, settings.posthoc_every, settings.keep
      )
      if resumed_at is not None:
        self._accumulators.restore(resumed_at)

  def after_step(self, model: nn.Module, step: int) -> None:
    """Call it before any evaluation puts an average in the weights' place."""
    every = self._settings.save_every
    if every is not None and step % every == 0:
      with section('Light checkpoint'):
        save(model, self._directory, step, self._settings.keep)
    if self._accumulators is not None:
      with section('Post-hoc accumulators'):
        self._accumulators.update(step)

  def before_checkpoint(self, step: int) -> None:
    """Call it before a checkpoint: none must ever be without what it needs."""
    if self._accumulators is not None:
      self._accumulators.save_state(step)
