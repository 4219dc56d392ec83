"""Averaging the weights of a model while something else trains it."""

import contextlib
import dataclasses
from collections.abc import (
  Callable,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from absl import logging
from torch import Tensor, nn

from weightavg import averaging_config
from weightavg.averaging_config import DEFAULT_REFRESH_EVERY, AveragingConfig
from weightavg.pytorch import (
  averager_state,
  dtensors,
  export,
  finite,
  multi_tensor,
  refreshed_statistics,
  shown,
  training_point,
)
from weightavg.pytorch.average_outside import AverageOutside
from weightavg.pytorch.choice import Choice
from weightavg.pytorch.device_placement import DevicePlacement
from weightavg.pytorch.placement import build_placement
from weightavg.pytorch.primal import PrimalPlacement
from weightavg.pytorch.swap import Swap
from weightavg.pytorch.weights import Weights
from weightavg.sampling import Sampling
from weightavg.schemes import Raw, Recursive, Scheme

_Method = TypeVar('_Method', bound=Callable[..., Any])


def _outside_autograd(method: _Method) -> _Method:
  """No gradients, and no inference tensors: buffers outlive the block."""
  return torch.inference_mode(False)(torch.no_grad()(method))


class Averager(AverageOutside):
  """Keeps an average of a model's weights and shows it to evaluation.

  With x_1..x_k the weights at the sampled steps, evaluation sees

    a_k = sum_j w_j x_j,   sum_j w_j = 1

  where the w_j are those of a scheme (`weightavg.schemes`): `Ema`, `Lawa`,
  `Polynomial`, or `Auto`, which keeps several averages and shows the one that
  was chosen last. Trained are the model's own weights, which stay bit for bit
  what they were; stored are the averages, in float32 (float64 for float64
  weights; LAWA's samples in the weights' dtype); evaluated is the average,
  between `swap_in` and `swap_out` or inside `evaluating()`. Before the first
  sample, evaluation sees the raw weights.

  With `interpolation` mu > 0 the average takes part in training. The optimizer
  steps z, x is the average of z, and the gradient is taken at y:

    y = mu x + (1 - mu) z
    z <- step of the optimizer from z with the gradient at y
    x <- x + c (z - x)

  The model then holds y, x between `swap_in` and `swap_out`, and z in the step
  of the optimizer, which `before_step` prepares. y and z are stored, x is
  computed from them. Weight decay acts on z, which the optimizer steps as
  ever. c is the scheme's. Switch the optimizer's momentum off: y has one.

  A sample that holds a NaN or an infinity never enters: it is counted in
  `skipped` and logged. With an interpolation y and z then continue from x. With
  `collective` a sample that one rank must skip is skipped by all.

  While the average is shown, an optimizer's step on the model and a
  `load_state_dict` of it raise before they write, and so does another averager.
  Writes that bypass both are lost with swap='copy' and damage the average with
  swap='exchange'. Running statistics may be written to, as torch's `update_bn`
  does; they and their counts of batches are as before after the next swap.

  Parameters are bound by their place in the model: one that is replaced by
  another of the same name, shape and dtype is followed, any other change of the
  trained parameters raises at the next sample.

  Args:
    weights: the model (wrapped by DistributedDataParallel or torch.compile or
      not), or pairs of a name and a tensor, which is floating-point or complex.
      Tied parameters count once; those of a model that require no gradient are
      left alone. Pairs are parameters, or tensors of your own: of those, a swap
      changes the content (as with swap='copy').
    scheme: the average, such as Ema(0.999).
    every: steps between two samples, >= 1. By default 1; 0.2 % of `total_steps`
      for a horizon and for LAWA, unless there is an interpolation.
    start: step before which nothing is sampled, >= 0.
    total_steps: T, number of optimizer steps that the run is planned for, >= 1;
      needed by a horizon only, which is a fraction of it.
    batch_norm: 'averaged': running statistics are averaged like parameters;
      'current': they stay the live model's; 'refreshed': they are those of
      forward passes inside `refreshing()`, with an interpolation only.
    refresh_every: steps between two such passes, >= 1; None for 10.
    placement: 'device' keeps the average beside the weights, 'cpu' in host
      memory, 'sharded' divides it over the ranks that `collective` names.
    swap: 'copy' copies the average into the parameters and the raw weights
      back. 'exchange' exchanges storages (`p.data = average`) and copies
      nothing: optimizers, DistributedDataParallel and torch.compile look
      parameters up anew and do not notice, but a storage that is held across a
      swap is the wrong one: in CUDA graphs (also torch.compile's
      mode='reduce-overhead'), in views such as `p.data[0]` or `p.numpy()`, and
      in inference copies that share memory.
    checkpoints: False saves a sharded average the gathering on the first rank
      that a checkpoint needs.
    interpolation: mu in [0, 1), for Ema, Polynomial and ScheduleFree, with
      placement='device'; None for 0, and for 0.9 with ScheduleFree.
    collective: the ranks that average the same weights and call `update` alike:
      True for all, or a process group of which this rank is a member. False
      makes no collective (an averager on rank 0 alone needs that), and each
      rank decides for itself. Otherwise a sample is skipped on all of these
      ranks if it is not finite on one of them, by one all-reduce of a number;
      and running statistics, which differ between ranks without SyncBatchNorm,
      are sampled from the first rank, as DistributedDataParallel broadcasts
      them. placement='sharded' turns False into True. Ranks that share DTensors
      decide together in any case.

  Raises:
    ValueError: for an argument out of range, a horizon without `total_steps`, a
      name given twice or an integer tensor.
    RuntimeError: from `update` while an average is shown, and where the model's
      parameters are no longer those that are averaged; with an interpolation
      also where the optimizer's step was not prepared, and from `before_step`
      where y was changed (not through `.data`) since the last `update`.

  >>> from weightavg import Lawa
  >>> model = nn.Linear(1, 1, bias=False)
  >>> averager = Averager(model, Lawa(window=2), every=1)
  >>> for value in (1.0, 2.0, 4.0):
  ...   _ = model.weight.data.fill_(value)  # in place of optimizer.step()
  ...   averager.update()
  >>> with averager.evaluating():
  ...   model.weight.item()
  3.0
  >>> model.weight.item()
  4.0

  >>> from weightavg import Ema
  >>> averager = Averager(model, Ema(decay=0.5), interpolation=0.75)
  >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
  >>> for gradient in (1.0, 2.0):  # z is 3, then 1; x is 3, then 5/3
  ...   model.weight.grad = torch.full((1, 1), gradient)  # taken at y
  ...   averager.before_step(optimizer)
  ...   optimizer.step()
  ...   averager.update()
  >>> round(model.weight.item(), 6)  # 0.75 * 5/3 + 0.25 * 1
  1.5
  """

  def __init__(
    self,
    weights: nn.Module | Iterable[tuple[str, Tensor]],
    scheme: Scheme,
    *,
    every: int | None = None,
    start: int = 0,
    total_steps: int | None = None,
    batch_norm: str = 'averaged',
    refresh_every: int | None = None,
    placement: str = 'device',
    swap: str = 'copy',
    checkpoints: bool = True,
    interpolation: float | None = None,
    collective: bool | dist.ProcessGroup = False,
  ) -> None:
    if not isinstance(scheme, Scheme):
      raise ValueError(
        f'Invalid scheme={scheme!r}. Must be a scheme such as Ema(0.999); '
        'Averager.from_config takes a configuration.'
      )
    if interpolation is None:
      interpolation = scheme.default_interpolation
    averaging_config.check_storage(batch_norm, placement, swap)
    averaging_config.check_interpolation(scheme, interpolation, placement)
    averaging_config.check_refresh(batch_norm, refresh_every, interpolation)
    if every is None and interpolation:
      every = 1
    self.sampling, self.scheme = averaging_config.resolve(
      scheme, every, start, total_steps
    )
    self.interpolation = interpolation
    self._weights = Weights(
      weights,
      with_statistics=batch_norm != 'current' and not isinstance(scheme, Raw),
    )
    self._collective = _checked_collective(collective, placement)
    if placement == 'sharded' and self._weights.distributed:
      raise ValueError(
        "Invalid placement='sharded'. Must be 'device' or 'cpu' for parameters "
        'that are DTensors: their averages are as distributed as they are.'
      )
    self._recipe = averager_state.recipe(
      self.scheme, self.sampling, batch_norm, interpolation
    )
    self._primal: PrimalPlacement | None = None
    if interpolation:
      assert isinstance(self.scheme, Recursive)
      self._primal = PrimalPlacement(
        self.scheme,
        self._weights,
        interpolation,
        averages_statistics=batch_norm == 'averaged',
        collective=self._collective,
      )
    self._refresh_every: int | None = None
    if batch_norm == 'refreshed' and self._weights.statistics:
      self._refresh_every = refresh_every or DEFAULT_REFRESH_EVERY
    self.placement: DevicePlacement | PrimalPlacement | None = self._primal
    if not interpolation and not isinstance(self.scheme, Raw):
      self.placement = build_placement(
        placement,
        self.scheme,
        self._weights.data(),
        checkpoints,
        None if isinstance(collective, bool) else collective,
      )
    self.choice = Choice(self.scheme)
    self.step = 0
    self._skipped = 0
    # The look at the last sample, until its result is read, and its step.
    self._look: tuple[finite.Look, int] | None = None
    self._looker = finite.Looker(self._collective)
    self._swap = Swap(self._weights, swap == 'exchange')
    self._warned = False

  @classmethod
  def from_config(
    cls,
    weights: nn.Module | Iterable[tuple[str, Tensor]],
    config: AveragingConfig,
    budget: int,
    steps_per_epoch: int | None = None,
    collective: bool | dist.ProcessGroup = False,
  ) -> 'Averager':
    """Build the averager that a point of a search space describes.

    Args:
      weights: as in the constructor.
      config: scheme and horizon; fractions are of `budget`.
      budget: T, number of optimizer steps that the run is planned for, >= 1.
      steps_per_epoch: steps; for averaging_preset='kaddour2022' only.
      collective: as in the constructor.
    """
    sampling, scheme = config.resolve(budget, steps_per_epoch)
    return cls(
      weights,
      scheme,
      every=sampling.every,
      start=sampling.start,
      batch_norm=config.averaging_batch_norm,
      refresh_every=config.averaging_refresh_every,
      placement=config.averaging_placement,
      swap=config.averaging_swap,
      checkpoints=config.averaging_checkpoints,
      interpolation=config.interpolation,
      collective=collective,
    )

  @property
  def skipped(self) -> int:
    """Number of samples that were not finite and did not enter."""
    self._settle()
    return self._skipped

  @property
  def samples(self) -> int:
    """Number of samples that have entered the average."""
    self._settle()
    return 0 if self.placement is None else self.placement.count

  @property
  def swapped(self) -> bool:
    """True while the model holds the average."""
    return self._swap.raw is not None

  def named_weights(self) -> dict[str, Tensor]:
    """Parameters and running statistics by their names in the state."""
    return dict(zip(self._weights.names, self._weights.tensors, strict=True))

  def resample(self, sampling: Sampling, scheme: Scheme | None = None) -> None:
    """Sample at another cadence from the next step on.

    The length of the average stays what it is in samples. So a horizon that is
    a fraction of T follows a new T; what has been sampled keeps its weight.

    Args:
      sampling: the cadence.
      scheme: with an interpolation, the scheme with its new length in samples,
        as each step is a sample there.
    """
    self.sampling = sampling
    if self.placement is not None:
      self._recipe |= dataclasses.asdict(sampling)
    if self._primal is not None and isinstance(scheme, Recursive):
      self.scheme = self._primal.scheme = scheme
      self._recipe |= averager_state.numbers(scheme)

  @_outside_autograd
  def before_step(self, *optimizers: torch.optim.Optimizer) -> None:
    """Call before each step of the optimizer, after clipping its gradients.

    Without an interpolation nothing happens. With one the model holds z from
    here to `update`.

    Args:
      *optimizers: those that step the model's parameters. Their learning rates
        are read here.

    Raises:
      RuntimeError: an average is shown, or the weights were changed since the
        last `update`.
    """
    if self._primal is None:
      return
    if self.swapped:
      raise RuntimeError(
        'The model holds the average. Call swap_out() before before_step().'
      )
    self._settle()
    self._weights.follow()
    shown.check_not_shown(self._weights.parameters, 'before_step()')
    if not self._warned:
      self._warned = True
      training_point.warn_of_momentum(self.interpolation, optimizers)
    self._primal.begin(
      optimizers,
      self.sampling.is_sampled(self.step + 1),
      self._weights.statistics_now(self._collective),
    )

  def update(self, finite: bool | None = None) -> None:
    """Call after every optimizer step: counts it, and samples if it is due.

    Args:
      finite: whether all weights are known to be finite; None looks at them,
        at the price of one read for each sample. On a GPU nothing waits for the
        result, which `samples` and `skipped` ask for. The same on all ranks
        that decide together.
    """
    if self.swapped:
      raise RuntimeError(
        'The model holds the average. Call swap_out() before update().'
      )
    if self._primal is not None:
      self._end_step(self._primal, finite)
    elif isinstance(self.placement, DevicePlacement):
      self.step += 1
      if self.sampling.is_sampled(self.step):
        self._sample(self.placement, finite)
    else:
      self.step += 1

  @_outside_autograd
  def _sample(self, placement: DevicePlacement, is_finite: bool | None) -> None:
    self._settle()
    self._weights.follow()
    shown.check_not_shown(self._weights.parameters, 'update()')
    tensors = self._weights.sample(self._collective)
    result: bool | finite.Look | None = is_finite
    if result is None:
      result = self._looker.look(tensors, self._weights.distributed)
    if isinstance(result, finite.Look):
      placement.add(tensors, result)
      self._look = (result, self.step)
    elif result:
      placement.add(tensors)
    else:
      self._skip(self.step)

  @_outside_autograd
  def _end_step(
    self, placement: PrimalPlacement, is_finite: bool | None
  ) -> None:
    statistics = self._weights.statistics_now(self._collective)
    result = placement.end(is_finite, statistics)
    self.step += 1
    if isinstance(result, finite.Look):
      self._look = (result, self.step)
    elif result is False:
      placement.retract()
      self._skip(self.step)

  @property
  def refresh_due(self) -> bool:
    """True after a step behind which `refreshing()` is to be entered."""
    return (
      self._refresh_every is not None
      and self.step % self._refresh_every == 0
      and self.samples > 0
    )

  @contextlib.contextmanager
  def refreshing(self) -> Iterator[None]:
    """Let forward passes move the running statistics of the average.

    Call the model in training mode inside the block, on a training batch,
    whenever `refresh_due` is true. Its layers' own momentum applies. The model,
    its buffers and the random numbers are as before after the block.

    Raises:
      RuntimeError: an average is shown, or batch_norm is not 'refreshed'.

    >>> from weightavg import Ema
    >>> model, batch = nn.BatchNorm1d(2), torch.ones(4, 2)
    >>> averager = Averager(
    ...   model, Ema(0.9), interpolation=0.9, batch_norm='refreshed')
    >>> if averager.refresh_due:
    ...   with averager.refreshing():
    ...     _ = model(batch)
    """
    if self._primal is None or self._refresh_every is None:
      raise RuntimeError(
        "Nothing is refreshed: batch_norm is not 'refreshed', or the model has "
        'no running statistics.'
      )
    if self.swapped:
      raise RuntimeError(
        'The model holds the average. Call swap_out() before refreshing().'
      )
    self._refuse_in_step('refreshing()')
    self._weights.follow()
    with torch.no_grad():
      average = self._primal.shown(self._weights.data())
    with refreshed_statistics.forward_passes(
      self._weights,
      self._swap,
      average,
      self._collective,
      self._primal.keep_statistics,
    ):
      yield

  def _settle(self) -> None:
    """Read what the look at the last sample found."""
    if self._look is None:
      return
    (result, step), self._look = self._look, None
    if result.must_skip():
      assert self.placement is not None
      self.placement.retract()
      self._skip(step)

  def _skip(self, step: int) -> None:
    self._skipped += 1
    logging.warning(
      'Step %d: the weights are not finite and did not enter the average '
      '(%d samples skipped so far).',
      step,
      self._skipped,
    )

  def select(self, which: int) -> None:
    """Choose what evaluation sees from now on, among the averages of `Auto`.

    Args:
      which: index into `choice.names`; -1 for the raw weights.

    Raises:
      RuntimeError: while an average is swapped in.
      ValueError: for an index that no candidate has.
    """
    if self.swapped:
      raise RuntimeError(
        'The model holds the average. Call swap_out() before select().'
      )
    self.choice.select(which)

  def choose(self, losses: Sequence[float]) -> str:
    """Select the average of `Auto` with the lowest loss, the first of equals.

    Args:
      losses: one for each of `choice.names`, on examples that were never
        trained on, the same for all; a loss that is not finite is out.

    Returns:
      Its name; 'raw' where no loss is finite.

    >>> from weightavg import Auto
    >>> model = nn.Linear(2, 1)
    >>> averager = Averager(
    ...   model, Auto('raw, ema 0.1, polynomial 4'), total_steps=100)
    >>> averager.update()
    >>> losses = []
    >>> for which in range(len(averager.choice.names)):
    ...   with averager.evaluating(which):
    ...     losses.append(model(torch.ones(1, 2)).item() ** 2)
    >>> averager.choose(losses)
    'raw'
    """
    which = self.choice.lowest(losses)
    self.select(which)
    return 'raw' if which < 0 else self.choice.names[which]

  @_outside_autograd
  def swap_in(self) -> None:
    """Show the average; nothing happens if it is shown already.

    With placement='sharded' every rank must call it: one all-gather, and the
    start of another one to rank 0 for the checkpoint.

    Raises:
      RuntimeError: another averager shows its average in the same weights.
    """
    if self.swapped or self.placement is None or not self.samples:
      return
    self._refuse_in_step('swap_in()')
    self._weights.follow()
    self.placement.collect()
    self.choice.warn_if_none()
    if self.choice.shows_raw:
      return
    raw = self._weights.data()
    self._swap.show(raw, self.placement.shown(raw, self.choice.selected))

  @_outside_autograd
  def swap_out(self) -> None:
    """Put the raw weights back; nothing happens if they are in place."""
    self._swap.undo()

  @contextlib.contextmanager
  def evaluating(self, which: int | None = None) -> Iterator[None]:
    """Show the average inside the block, the raw weights after it.

    Args:
      which: index into `choice.names` of another average than the chosen one;
        -1 for the raw weights.

    Raises:
      RuntimeError: an average is shown already and another one is asked for.
    """
    was_swapped, selected = self.swapped, self.choice.selected
    if which is not None and which != selected:
      self.select(which)
    try:
      self.swap_in()
      yield
    finally:
      if not was_swapped:
        self.swap_out()
      self.choice.selected = selected

  @_outside_autograd
  def import_state(
    self, state: Mapping[str, Any], library: str, samples: int | None = None
  ) -> None:
    """Continue the average that another library has kept.

    Its value is taken over as the average of `samples` samples; the following
    samples enter with this averager's own coefficients.

    Args:
      state: its state dict.
      library: as in `export_state`.
      samples: number of samples in the average, >= 1; by default the library's
        own count.

    Raises:
      RuntimeError: an average is shown.
      ValueError: the scheme keeps no running average, the state does not fit
        the model, or the number of samples is not known; nothing has changed.
    """
    if self.swapped:
      raise RuntimeError(
        'The model holds the average. Call swap_out() before import_state().'
      )
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
    averages, count = export.from_library(state, library)
    samples = count if samples is None else samples
    if not isinstance(samples, int) or samples < 1:
      raise ValueError(
        f'Invalid samples={samples!r}. Must be an integer in [1, inf): the '
        'number of updates of the average, which has to have one.'
      )
    buffers = {
      name: averages[name] for name in self._weights.names if name in averages
    }
    shapes = self._shapes()
    averager_state.check_tensors(buffers, shapes)
    self.step = max(self.step, samples * self.sampling.every)
    self.placement.restore(
      samples, [self._in_order(buffers)], self._weights.data()
    )

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
    buffers = [] if self.placement is None else self.placement.buffers()
    weighting = (
      {} if self._primal is None else {'weighting': self._primal.weighting()}
    )
    counters = self._swap.changed_counters()
    return {
      'format': averager_state.FORMAT,
      'recipe': dict(self._recipe),
      'step': self.step,
      'samples': self.samples,
      'skipped': self._skipped,
      'selected': self.choice.selected,
      'swapped': self.swapped,
      'complete': buffers is not None,
      'buffers': [self._by_name(tensors) for tensors in buffers or []],
      'raw': {} if self._swap.raw is None else self._by_name(self._swap.raw),
      **weighting,
      **({'counters': counters} if counters else {}),
    }

  @_outside_autograd
  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Continue from a saved state, with the average shown if it was then.

    The model has to be restored too, before or after. If the average was
    swapped in, the model holds it again afterwards and `swap_out` gives the raw
    weights; that is a collective with placement='sharded'.

    Raises:
      ValueError: for a state of another scheme, horizon or model; nothing has
        been changed then.
    """
    averager_state.check(state_dict, self.scheme, self._recipe, self._shapes())
    raw = state_dict['raw']
    self._refuse_in_step('load_state_dict()')
    if self.swapped:
      # They may be this averager's own, which are about to be overwritten.
      raw = {name: tensor.clone() for name, tensor in raw.items()}
      self.swap_out()
    self._settle()
    self.step = state_dict['step']
    self._skipped = state_dict['skipped']
    self.choice.selected = state_dict['selected']
    saved = [self._in_order(named) for named in state_dict['buffers']]
    samples = state_dict['samples']
    if self._primal is not None:
      self._primal.restore(samples, saved, state_dict['weighting'])
    elif isinstance(self.placement, DevicePlacement):
      self.placement.restore(samples, saved, self._weights.data())
    if state_dict['swapped']:
      multi_tensor.copy_(self._weights.data(), self._in_order(raw))
      self._weights.set_counters(state_dict.get('counters', {}))
      self.swap_in()

  def _refuse_in_step(self, action: str) -> None:
    if self._primal is not None and self._primal.in_step:
      raise RuntimeError(
        f'The model holds z. Call update() before {action}, after the step of '
        'the optimizer.'
      )

  @_outside_autograd
  def _average(self) -> list[Tensor]:
    """Return the weights for evaluation, raw before the first sample."""
    raw = self._weights.data() if self._swap.raw is None else self._swap.raw
    if self.placement is None or not self.samples or self.choice.shows_raw:
      return raw
    return self.placement.shown(raw, self.choice.selected)

  def _shapes(self) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in self.named_weights().items()}

  def _by_name(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    wrapped = map(dtensors.wrap, tensors, self._weights.tensors)
    return dict(zip(self._weights.names, wrapped, strict=True))

  def _in_order(self, named: dict[str, Tensor]) -> list[Tensor]:
    weights = self.named_weights().items()
    return [dtensors.piece_of(named[name], tensor) for name, tensor in weights]


def _checked_collective(
  collective: bool | dist.ProcessGroup, placement: str
) -> bool | dist.ProcessGroup:
  if isinstance(collective, bool):
    return collective or placement == 'sharded'
  if dist.is_available() and isinstance(collective, dist.ProcessGroup):
    return collective
  raise ValueError(
    f'Invalid collective={collective!r}. Must be True, False, or a process '
    'group of which this rank is a member.'
  )
