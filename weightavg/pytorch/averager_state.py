"""The state of an averager: saved, loaded, or that of another library."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightavg.config_fields import is_integer, plain
from weightavg.pytorch import (
  averager_state_checks,
  dtensors,
  export,
  multi_tensor,
  shown,
)
from weightavg.pytorch.averager_evaluation import AveragerEvaluation
from weightavg.pytorch.averager_parts import outside_autograd
from weightavg.pytorch.device_placement import DevicePlacement
from weightavg.pytorch.saved_state import check_tensors
from weightavg.schemes import Recursive


class AveragerState(AveragerEvaluation):
  """Saves and restores the averages, and the raw weights while one is shown."""

  def state_dict(self) -> dict[str, Any]:
    """Everything needed to continue, in tensors, numbers, strings and dicts.

    The raw weights are among it while the average is swapped in, since the
    model's own state dict then holds the average. Tensors are not copied. The
    state does not depend on the placement and loads into any other. It makes
    no collective: what a sharded average needs of other ranks is on its way to
    rank 0 since `swap_in`. Where it is not (on another rank, after a sample
    since, or with checkpoints=False) the state says so and cannot be
    loaded.
    """
    self._settle()
    self._refuse_in_step('state_dict()')
    if self._primal is not None:
      self._primal.check_whole()
    buffers = [] if self.placement is None else self.placement.buffers()
    primal: dict[str, Any] = {}
    if self._primal is not None:
      primal['weighting'] = self._primal.weighting()
      if statistics := self._primal.kept_statistics():
        primal['statistics'] = statistics
    counters = self._swap.counters()
    chosen, is_made = self.choice.chosen
    return {
      'format': averager_state_checks.FORMAT,
      'recipe': dict(self._recipe),
      'step': self.step,
      'samples': self.samples,
      'skipped': self._skipped,
      'selected': self.choice.selected,
      'chosen': chosen,
      'choice_is_made': is_made,
      'swapped': self.swapped,
      'complete': buffers is not None,
      'buffers': [self._by_name(tensors) for tensors in buffers or []],
      'raw': {} if self._swap.raw is None else self._by_name(self._swap.raw),
      **primal,
      **({'counters': counters} if counters else {}),
    }

  @outside_autograd
  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Continue from a saved state, with the average shown if it was then.

    The model has to be restored too, before or after; before, where its dtype
    is another than that of the state. If the average was swapped in, the model
    holds it again afterwards and `swap_out` gives the raw weights; that is a
    collective with placement='sharded'.

    Raises:
      RuntimeError: another averager shows its average in the same weights, and
        this one is to show its own.
      ValueError: for a state of another scheme, horizon or model. Nothing has
        been changed in either case.
    """
    # `_shapes` binds parameters that have replaced others, for what follows.
    averager_state_checks.check(
      state_dict,
      self.scheme,
      self._recipe,
      self._shapes(),
      self._weights.live_statistics(),
    )
    raw = state_dict['raw']
    self._refuse_in_step('load_state_dict()')
    if state_dict['swapped'] and not self.swapped:
      shown.check_not_shown(self._weights.parameters, 'load_state_dict()')
    if self.swapped:
      # They may be this averager's own, which are about to be overwritten.
      raw = {name: tensor.clone() for name, tensor in raw.items()}
      self.swap_out()
    self._settle()
    if isinstance(self.placement, DevicePlacement):
      # Before anything is written: an old sample may have failed.
      self.placement.settle()
    self.step = state_dict['step']
    self._skipped = state_dict['skipped']
    saved = [self._in_order(named) for named in state_dict['buffers']]
    samples = state_dict['samples']
    if self._primal is not None:
      self._primal.restore(samples, saved, state_dict['weighting'])
    elif isinstance(self.placement, DevicePlacement):
      self.placement.restore(samples, saved, self._weights.data())
    if state_dict['swapped']:
      multi_tensor.copy_(self._weights.data(), self._in_order(raw))
    if self._primal is not None:
      self._primal.restart_statistics(state_dict.get('statistics'))
    self._is_refreshed = True
    self.choice.restore(
      state_dict['selected'],
      # Not in states of earlier versions.
      state_dict.get('chosen'),
      state_dict.get('choice_is_made'),
    )
    if not state_dict['swapped']:
      self.choice.give_up()
    else:
      self.swap_in()
      # Not the model's own: it may be restored only after this.
      self._swap.set_counters(state_dict.get('counters', {}))

  @outside_autograd
  def import_state(
    self, state: Mapping[str, Any], library: str, samples: int | None = None
  ) -> None:
    """Continue the average that another library has kept.

    Its value is taken over as the average of `samples` samples; the following
    samples enter with this averager's own coefficients.

    Args:
      state: its state dict.
      library: as in `export_state`.
      samples: number of samples in the average, >= 1; by default the count
        that torch keeps. ema-pytorch counts calls, sampled or not, timm none.

    Raises:
      RuntimeError: an average is shown.
      ValueError: the scheme keeps no running average, the state does not fit
        the model, or the number of samples is not known; nothing has changed.
    """
    self._refuse_shown('import_state()')
    if self._primal is not None:
      raise ValueError(
        f'Invalid interpolation={self.interpolation}. Must be 0: the states of '
        'other libraries hold the average alone.'
      )
    if not isinstance(self.placement, DevicePlacement) or not isinstance(
      self.scheme, Recursive
    ):
      raise ValueError(
        f'Invalid scheme={self.scheme}. Must keep a running average, as Ema '
        'and Polynomial do, to continue another one.'
      )
    averages, count = export.from_library(state, library, self._weights.names)
    samples = plain(count if samples is None else samples)
    if not is_integer(samples) or samples < 1:
      raise ValueError(
        f'Invalid samples={samples!r}. Must be an integer in [1, inf): the '
        'number of updates of the average, which has to have one.'
      )
    buffers = {
      name: averages[name] for name in self._weights.names if name in averages
    }
    shapes = self._shapes()
    check_tensors(buffers, shapes, averager_state_checks.SUBJECT)
    # The step of the last of these samples: the next one is `every` later.
    first = self.sampling.steps(last=0).start
    last = first + (samples - 1) * self.sampling.every
    self._settle()
    self.step = max(self.step, last)
    self.placement.restore(
      samples, [self._in_order(buffers)], self._weights.data()
    )

  def _shapes(self) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in self.named_weights().items()}

  def _by_name(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    wrapped = map(dtensors.wrap, tensors, self._weights.tensors)
    return dict(zip(self._weights.names, wrapped, strict=True))

  def _in_order(self, named: dict[str, Tensor]) -> list[Tensor]:
    weights = self.named_weights().items()
    return [dtensors.piece_of(named[name], tensor) for name, tensor in weights]
