"""Averaging the weights of a model while something else trains it."""

import dataclasses
from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn

from weightavg import averaging_config
from weightavg.averaging_config import AveragingConfig
from weightavg.interpolation_checks import (
  DEFAULT_REFRESH_EVERY,
  batch_norm_of,
  check_interpolation,
  check_refresh,
)
from weightavg.pytorch import (
  averager_state_checks,
  finite,
  shown,
  training_point,
)
from weightavg.pytorch.average_outside import AverageOutside
from weightavg.pytorch.averager_interpolation import AveragerInterpolation
from weightavg.pytorch.averager_parts import outside_autograd
from weightavg.pytorch.averager_state import AveragerState
from weightavg.pytorch.choice import Choice
from weightavg.pytorch.device_placement import DevicePlacement
from weightavg.pytorch.placement import build_placement
from weightavg.pytorch.primal import PrimalPlacement
from weightavg.pytorch.swap import Swap
from weightavg.pytorch.weights import Weights
from weightavg.sampling import Sampling
from weightavg.schemes import Raw, Recursive, Scheme


class Averager(AveragerInterpolation, AveragerState, AverageOutside):
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
  Other writes are lost with swap='copy' and may change the average with
  swap='exchange'; `swap_out` logs those that do not go through `.data`. The
  running statistics of an average may be written to, as
  torch's `update_bn` does: they and their counts of batches are as before after
  the next swap. With batch_norm='current' they are the trained model's own.

  Parameters are bound by their place in the model: one that is replaced by
  another of the same name, shape and dtype is followed (not with an
  interpolation), any other change of the trained parameters raises at the next
  sample.

  Args:
    weights: the model (wrapped by DistributedDataParallel or torch.compile or
      not), or pairs of a name and a tensor, which is floating-point or complex.
      Tied parameters count once; those of a model that require no gradient are
      left alone. Pairs are parameters, or tensors of your own, which your steps
      change in place: of those, a swap changes the content (as with
      swap='copy').
    scheme: the average, such as Ema(0.999).
    every: steps between two samples, >= 1. By default 0.2 % of `total_steps`
      where that is given; 1 where it is not, for an EMA with a decay, and with
      an interpolation. LAWA needs one of the two.
    start: step before which nothing is sampled, >= 0.
    total_steps: T, number of optimizer steps that the run is planned for, >= 1;
      needed by a horizon only, which is a fraction of it.
    batch_norm: 'averaged': running statistics are averaged like parameters;
      'current': they stay the live model's; 'refreshed': they are those of
      forward passes inside `refreshing()`, with an interpolation only. None for
      'averaged', and for 'current' with an interpolation. With `ScheduleFree`
      refreshed ones are better.
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
    RuntimeError: from `update` while an average is shown or another averager
      has handed z to the optimizer, and where the model's
      parameters are no longer those that are averaged, or of another dtype or
      on another device; with an interpolation
      also where the optimizer's step was not prepared, and from `before_step`
      where y was changed (not through `.data`) since the last `update`.

  >>> import torch
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

  @outside_autograd
  def __init__(
    self,
    weights: nn.Module | Iterable[tuple[str, Tensor]],
    scheme: Scheme,
    *,
    every: int | None = None,
    start: int = 0,
    total_steps: int | None = None,
    batch_norm: str | None = None,
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
    averaging_config.check_storage(batch_norm, placement, swap, checkpoints)
    check_interpolation(scheme, interpolation, placement)
    batch_norm = batch_norm_of(batch_norm, interpolation)
    check_refresh(batch_norm, refresh_every, interpolation)
    interpolation = float(interpolation)
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
    self._recipe = averager_state_checks.recipe(
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
        looker=finite.Looker(self._collective),
      )
    self._refresh_every: int | None = None
    if batch_norm == 'refreshed' and self._weights.statistics:
      self._refresh_every = refresh_every or DEFAULT_REFRESH_EVERY
    self._is_refreshed = False
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
      config: scheme and horizon; fractions are of `budget`. Its default of
        `averaging_swap` is 'exchange', the constructor's is 'copy'.
      budget: T, number of optimizer steps that the run is planned for, >= 1.
      steps_per_epoch: steps; for averaging_preset='kaddour2022' only.
      collective: as in the constructor.
    """
    if not isinstance(config, AveragingConfig):
      raise ValueError(
        f'Invalid config: a {type(config).__name__}. Must be an '
        'AveragingConfig, as AveragingConfig.from_point(**point) is.'
      )
    sampling, scheme = config.resolve(budget, steps_per_epoch)
    return cls(
      weights,
      scheme,
      every=sampling.every,
      start=sampling.start,
      batch_norm=config.batch_norm,
      refresh_every=config.averaging_refresh_every,
      placement=config.averaging_placement,
      swap=config.averaging_swap,
      checkpoints=config.averaging_checkpoints,
      interpolation=config.interpolation,
      collective=collective,
    )

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
      self._recipe |= averager_state_checks.numbers(scheme)

  def update(self, *, finite: bool | None = None) -> None:
    """Call after every optimizer step: counts it, and samples if it is due.

    Args:
      finite: whether all weights are known to be finite; None looks at them,
        at the price of one read for each sample. On a GPU nothing waits for the
        result, which `samples` and `skipped` ask for. The same on all ranks
        that decide together.
    """
    self._refuse_shown('update()')
    if self._primal is not None:
      self._end_step(self._primal, finite)
      return
    step = self.step + 1
    if isinstance(self.placement, DevicePlacement) and self.sampling.is_sampled(
      step
    ):
      self._sample(self.placement, finite, step)
    # Not counted where an error was raised.
    self.step = step

  @outside_autograd
  def _sample(
    self, placement: DevicePlacement, is_finite: bool | None, step: int
  ) -> None:
    self._settle()
    self._weights.follow()
    shown.check_not_shown(self._weights.parameters, 'update()')
    training_point.check_not_stepped(self._weights.parameters, 'update()')
    tensors = self._weights.sample(self._collective)
    result: bool | finite.Look | None = is_finite
    if result is None:
      result = self._looker.look(tensors, self._weights.distributed)
    if isinstance(result, finite.Look):
      placement.add(tensors, result)
      self._look = (result, step)
    elif result:
      placement.add(tensors)
    else:
      self._skip(step)


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
