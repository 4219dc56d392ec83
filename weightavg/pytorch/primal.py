"""Averages at which training takes place: primal averaging.

Three sequences: z is stepped by the optimizer, x is the average of z, gradients
are taken at y between them.

  y = mu x + (1 - mu) z
  z <- step of the optimizer from z with the gradient at y
  x <- x + c (z - x)

Stored are y, in the model's parameters, and z: as much memory as an optimizer's
momentum. x = y + (1 - 1/mu) (z - y) is computed where it is needed. With x in
the memory of y, one step is

  y <- y + (1 - 1/mu) (z - y)           x of the last step
  z <- step of the optimizer
  y <- x + (1 - mu (1 - c)) (z - x)     y of this step

Both lines in y are moved by the optimizer in its own pass over memory where it
can do that (`primal_step`), as NadamW does. A step whose gradients are not
finite is then left out as a whole: x, y, z, the optimizer's moments and the
running statistics are as they were. Another optimizer steps z, whatever it is,
and z is looked at: one that is not finite is dropped, and y and z continue from
x.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightavg.pytorch import (
  accumulators,
  dtensors,
  finite,
  multi_tensor,
  training_point,
)
from weightavg.pytorch.kept_statistics import KeptStatistics
from weightavg.pytorch.primal_step import PrimalStep, skip_of
from weightavg.pytorch.primal_weighting import Weighting
from weightavg.pytorch.unchanged import Unchanged
from weightavg.pytorch.weights import Weights
from weightavg.schemes import Recursive


class PrimalPlacement:
  """x, y and z of a model in training; between steps the parameters hold y.

  Running statistics are those of y. With `weights.statistics` they are averaged
  with the coefficients c, or set by `keep_statistics`. After a batch that is
  not finite, the model has those of before.

  Args:
    scheme: gives c.
    weights: the parameters, float32 or wider.
    interpolation: mu in (0, 1).
    averages_statistics: False leaves them, from the first sample on, to
      `keep_statistics`.
    looker: looks at gradients, z and running statistics; by default on this
      rank alone.

  Raises:
    ValueError: for parameters of 16 bits.
  """

  def __init__(
    self,
    scheme: Recursive,
    weights: Weights,
    interpolation: float,
    averages_statistics: bool = True,
    looker: finite.Looker | None = None,
  ) -> None:
    for name, p in zip(weights.names, weights.parameters, strict=False):
      if accumulators.average_dtype(p.dtype) != p.dtype:
        raise ValueError(
          f'Invalid interpolation={interpolation}: {name!r} is {p.dtype}. The '
          'average is computed from the parameters, which must be float32 or '
          'wider; autocast computes with 16 bits.'
        )
    self.count = 0
    self.scheme = scheme
    self._weights = weights
    self._mu = interpolation
    self._averages_statistics = averages_statistics
    # Of a scheme whose weights follow the learning rate.
    self._weighting = Weighting()
    # As it was before the last step's sample; None if that took none.
    self._undo: Weighting | None = None
    # z; y while the parameters hold z.
    self._other = [
      accumulators.allocate_beside(dtensors.local(p), p.dtype)
      for p in weights.parameters
    ]
    self._statistics = [
      accumulators.allocate_beside(
        s.tensor, accumulators.average_dtype(s.tensor.dtype)
      )
      for s in weights.statistics
    ]
    self._kept = KeptStatistics(weights)
    self._step: PrimalStep | None = None
    # True while `begin` writes, and after it was interrupted there.
    self._is_torn = False
    # The last step, until its result is known.
    self._ended = PrimalStep()
    self._looker = looker or finite.Looker()
    # The parameters as `end` left them.
    self._unchanged = Unchanged(weights)
    training_point.guard(self)

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update({'_is_torn': False} | state)
    training_point.guard(self)

  @property
  def in_step(self) -> bool:
    """True between `begin` and `end`: the parameters hold z."""
    return self._step is not None

  def trains(self, parameter: Tensor) -> bool:
    """True for one of the parameters, also one that has replaced another."""
    return id(parameter) in self._weights.ids

  def begin(
    self,
    optimizers: Sequence[torch.optim.Optimizer],
    is_sampled: bool,
  ) -> None:
    """Hand z to the optimizers.

    Args:
      optimizers: all that step the parameters.
      is_sampled: whether z enters the average after the step.

    Raises:
      RuntimeError: the last step was not ended, or y was changed since.
    """
    if self._step is not None:
      raise RuntimeError(
        'before_step() was called twice. Call update() after the step of the '
        'optimizer.'
      )
    self.check_unchanged()
    self._kept.keep()
    if not self.count and not is_sampled:
      self._step = PrimalStep()
      return
    y = self._local()
    if not self.count:
      self._lay_out_like(y)
      multi_tensor.copy_(self._other, y)
    before = self.count, self._weighting
    try:
      c = self._next_coefficient(optimizers) if is_sampled else None
      step = PrimalStep(
        before=1.0 - 1.0 / self._mu,
        after=1.0 - self._mu * (1.0 - (c or 0.0)),
        coefficient=c,
      )
      step.offer(optimizers, self._weights.parameters, self._look)
    except BaseException:  # as of a gradient that cannot be looked at
      self.count, self._weighting = before
      raise
    self._undo = before[1] if is_sampled else None
    self._is_torn = True
    if step.followers is None:
      multi_tensor.lerp_(y, self._other, step.before)
    self._exchange()
    self._step = step
    self._is_torn = False
    # Last: an optimizer that has none moves nothing, and `end` moves all.
    if step.followers is not None:
      step.followers.tensors = dict(
        zip(self._weights.parameters, self._other, strict=True)
      )

  def stepped_by(self, optimizer: torch.optim.Optimizer) -> None:
    """Note which optimizer begins to step z."""
    if self._step is not None:
      self._step.stepped_by(
        optimizer, self._weights.parameters, self._other, self._local()
      )

  def end(
    self, is_finite: bool | None, statistics: Sequence[Tensor]
  ) -> finite.Look | bool | None:
    """Take z in, and put y in its place.

    Args:
      is_finite: whether z is known to be finite; None looks at it.
      statistics: running statistics of y.

    Returns:
      Whether z was finite, perhaps as a look whose result is not there yet;
      None if training has not reached the first sample. If it was not,
      `retract` must be called before the next step.

    Raises:
      RuntimeError: `begin` was not called.
    """
    self.check_whole()
    step = self._step
    if step is None:
      raise RuntimeError(
        'Call before_step(optimizer) before the step of the optimizer: '
        'it steps z, and the model holds y.'
      )
    self._step = None
    step.release()
    if step.after is None:
      return None
    z, y = self._local(), self._other
    result = step.look if is_finite is None else is_finite
    if step.is_left_out:
      result = False
    elif step.followers is None and result is None:
      result = self._look(z)
    if is_finite is False and step.is_made:
      # The caller knows better than the gradients did.
      step.move(self._weights.parameters, y, z, True)
      step.take_back(y, z)
      step = PrimalStep()
    else:
      step.move(self._weights.parameters, y, z, result)
    if step.coefficient is not None and result is not False:
      self._average_statistics(step.coefficient, statistics, skip_of(result))
    self._exchange()
    self._unchanged.note()
    self._ended = step if result is not True else PrimalStep()
    return result

  def retract(self) -> None:
    """Forget the last step, which was not finite.

    Without followers y and z continue from x.
    """
    if self._undo is not None:
      self._weighting, self._undo = self._undo, None
      self.count -= 1
    self._kept.put_back()
    step, self._ended = self._ended, PrimalStep()
    if step.is_left_out:
      return
    # Left out was the second line in y: it holds x.
    if step.followers is None:
      multi_tensor.copy_(self._other, self._local())
      return
    for leader in step.leaders:
      leader.uncount()
    changed = self._unchanged.changed()
    multi_tensor.lerp_(self._local(), self._other, 1.0 - self._mu)
    if changed is None:
      self._unchanged.note()

  def keep_statistics(self, statistics: Sequence[Tensor]) -> None:
    """Take over the running statistics of x, unless one is not finite."""
    multi_tensor.copy_if_finite_(self._statistics, statistics)

  def collect(self) -> None:
    """Start to bring together what `buffers` needs: it is here."""

  def shown(self, raw: Sequence[Tensor], which: int = 0) -> list[Tensor]:
    """x, and the averages of running statistics.

    Args:
      raw: y, and the running statistics.
      which: 0, the only average.
    """
    del which
    count = len(self._other)
    x = torch._foreach_lerp(
      list(raw[:count]), self._other, 1.0 - 1.0 / self._mu
    )
    statistics = zip(self._statistics, raw[count:], strict=True)
    return list(x) + [s.to(own.dtype) for s, own in statistics]

  def check_whole(self) -> None:
    """Raise RuntimeError if `begin` was interrupted while it wrote."""
    if self._is_torn:
      raise RuntimeError(
        'before_step() was interrupted: the weights are y in part. Load a '
        'state of the model and of this averager.'
      )

  def check_unchanged(self) -> None:
    """Raise RuntimeError if y was changed since the last `end`."""
    self.check_whole()
    name = self._unchanged.changed() if self.count else None
    if name is not None:
      raise RuntimeError(
        f'The weights were changed since the last update(): {name!r}. The '
        'average is computed from them. Build a new Averager, or load a '
        'state of this one.'
      )

  def note_put_back(self) -> None:
    """y is in place again, whatever was written to x while that was shown."""
    self._unchanged.note()

  def buffers(self) -> list[list[Tensor]]:
    """z and the averages of running statistics, once there is a sample."""
    return [[*self._other, *self._statistics]] if self.count else []

  def weighting(self) -> dict[str, float]:
    """The sums on which c depends, apart from the number of samples."""
    return dataclasses.asdict(self._weighting)

  def kept_statistics(self) -> dict[str, Tensor]:
    """Running statistics and counts to which a bad next batch returns."""
    return self._kept.by_name()

  def restore(
    self,
    count: int,
    buffers: Sequence[Sequence[Tensor]],
    weighting: dict[str, float],
  ) -> None:
    """Continue from saved buffers, which are copied."""
    if self._step is not None:
      raise RuntimeError(
        'A step of the optimizer has begun. Call update() before '
        'load_state_dict().'
      )
    self.count = count
    self._is_torn = False
    self._weighting, self._undo = Weighting(**weighting), None
    for saved in buffers:
      multi_tensor.copy_([*self._other, *self._statistics], saved)
    self._unchanged.forget()  # the model may be loaded before or after
    self._ended = PrimalStep()

  def restart_statistics(self, saved: Mapping[str, Tensor] | None) -> None:
    """Return to saved `kept_statistics`, or those of now, if a batch is bad."""
    self._kept.restart(saved)

  def nbytes(self) -> int:
    """Bytes of z and of the averages of running statistics."""
    return accumulators.nbytes([*self._other, *self._statistics])

  def _local(self) -> list[Tensor]:
    return [dtensors.local(p) for p in self._weights.parameters]

  def _lay_out_like(self, y: Sequence[Tensor]) -> None:
    """Give z the strides of a model that was made channels-last since.

    Fused optimizers take gradient and parameter for equally laid out.
    """
    for i, (z, own) in enumerate(zip(self._other, y, strict=True)):
      if z.stride() != own.stride():
        self._other[i] = accumulators.allocate_beside(own, own.dtype)

  def _next_coefficient(
    self, optimizers: Sequence[torch.optim.Optimizer]
  ) -> float:
    """Count one more sample and return its c."""
    self.count += 1
    rates = [float(g['lr']) for o in optimizers for g in o.param_groups]
    c, self._weighting = self._weighting.next(self.scheme, self.count, rates)
    return c

  def _look(self, tensors: Sequence[Tensor]) -> finite.Look | bool:
    """Look at tensors and at what the forward pass left in the layers."""
    seen = [*tensors, *self._kept.now]
    return self._looker.look(seen, self._weights.distributed)

  def _average_statistics(
    self, c: float, statistics: Sequence[Tensor], skip: Tensor | None
  ) -> None:
    if self.count == 1:
      multi_tensor.copy_(self._statistics, statistics)
    elif not self._averages_statistics:
      return
    elif skip is None:
      multi_tensor.lerp_(self._statistics, statistics, c)
    else:
      multi_tensor.skipping_lerp_(self._statistics, statistics, c, skip)

  def _exchange(self) -> None:
    """Exchange what the parameters hold for the other of y and z.

    Between two steps a parameter has the storage that it was made with: only
    inside the optimizer's step it has another one.
    """
    if not self._weights.are_parameters or self._weights.distributed:
      for mine, theirs in multi_tensor.pieces(self._local(), self._other):
        kept = [t.clone() for t in mine]
        torch._foreach_copy_(mine, theirs)
        torch._foreach_copy_(theirs, kept)
      self._weights.reshard()
      return
    for i, p in enumerate(self._weights.parameters):
      self._other[i], p.data = p.data, self._other[i]
