"""Averaging the weights of a model while something else trains it."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from absl import logging
from torch import Tensor, nn

from weightavg.averaging_config import AveragingConfig
from weightavg.pytorch import averager_state, models, multi_tensor
from weightavg.pytorch.choice import Choice
from weightavg.pytorch.device_placement import DevicePlacement
from weightavg.pytorch.distributed import world_size
from weightavg.pytorch.placement import build_placement
from weightavg.schemes import Raw


def _outside_autograd(method: Callable[..., None]) -> Callable[..., None]:
  """No gradients, and no inference tensors: buffers outlive the block."""
  return torch.inference_mode(False)(torch.no_grad()(method))


class Averager:
  """Keeps an average of a model's weights and shows it to evaluation.

  With x_1..x_k the weights at the sampled steps, evaluation sees

    a_k = sum_j w_j x_j,   sum_j w_j = 1

  where the w_j are those of LAWA, EMA or the polynomial average
  (`weightavg.schemes`). Trained are the model's own weights, which stay
  bit for bit what they were; stored are the averages, in float32 (float64 for
  float64 weights; LAWA's samples in the weights' dtype); evaluated is the
  average, between `swap_in` and `swap_out`. Before the first sample, and with
  the scheme 'none', evaluation sees the raw weights.

  With averaging_scheme='auto' several averages are kept over the same samples,
  `choice.names` names them, and evaluation sees the one that was selected last;
  the raw weights before that.

  A sample that holds a NaN or an infinity never enters: it is counted in
  `skipped` and logged.

  With averaging_swap='exchange' (the default) a swap exchanges storages
  (`p.data = average`) and copies nothing. Optimizers, DistributedDataParallel
  and torch.compile look parameters up anew and do not notice. Who holds on to
  the storage itself must not do so across a swap: CUDA graphs (also
  torch.compile's mode='reduce-overhead'), views such as `p.data[0]` or
  `p.numpy()` taken before it, and inference copies that share memory. For them
  averaging_swap='copy' copies the average into the parameters and the raw
  weights back. While the average is shown it is for reading: what is written to
  the parameters is written to the average itself. Running statistics may be
  written to, and are the average's again at the next swap.

  Args:
    weights: the model (wrapped by DistributedDataParallel or torch.compile or
      not), or pairs of a name and a tensor, which is floating-point or complex.
      Tied parameters count once; those of a model that require no gradient now
      are left alone, then and later. Running statistics of a model's BatchNorm
      are averaged like parameters; with averaging_batch_norm='current' they
      stay the live model's. Pairs are parameters, or tensors of your own: of
      those, a swap changes the content (as with averaging_swap='copy').
    config: scheme and horizon; fractions are of `budget`.
    budget: T, number of optimizer steps that the run is planned for, >= 1.
    steps_per_epoch: steps; for averaging_preset='kaddour2022' only.
    collective: whether all ranks of the default process group call `update`
      alike. Running statistics differ between ranks without SyncBatchNorm; they
      are then sampled from rank 0, as DistributedDataParallel broadcasts them.
      With averaging_placement='sharded' so it is in any case.

  Raises:
    ValueError: for a name given twice, an integer tensor or a budget below 1.
    RuntimeError: from `update` while the average is swapped in.

  >>> model = nn.Linear(1, 1, bias=False)
  >>> config = AveragingConfig.from_point(
  ...   averaging_scheme='lawa', averaging_every_steps=1, lawa_window=2)
  >>> averager = Averager(model, config, budget=3)
  >>> for value in (1.0, 2.0, 4.0):
  ...   _ = model.weight.data.fill_(value)  # in place of optimizer.step()
  ...   averager.update()
  >>> with averager.evaluating():
  ...   model.weight.item()
  3.0
  >>> model.weight.item()
  4.0
  """

  def __init__(
    self,
    weights: nn.Module | Iterable[tuple[str, Tensor]],
    config: AveragingConfig,
    budget: int,
    steps_per_epoch: int | None = None,
    collective: bool = False,
  ) -> None:
    self._names, self._weights = _named_weights(weights)
    self._statistics: list[models.Statistic] = []
    is_model = isinstance(weights, nn.Module)
    if (
      isinstance(weights, nn.Module)
      and not isinstance(config.scheme, Raw)
      and config.averaging_batch_norm == 'averaged'
    ):
      self._statistics = list(models.running_statistics(weights))
      self._names += [statistic.name for statistic in self._statistics]
    is_sharded = config.averaging_placement == 'sharded'
    self._collective = collective or is_sharded
    # A tensor that is no parameter may be an alias, as in a state dict: an
    # exchange of its storage would not reach the model.
    self._exchange = config.averaging_swap == 'exchange' and (
      is_model or all(isinstance(t, nn.Parameter) for t in self._weights)
    )
    self._config = config
    self._steps_per_epoch = steps_per_epoch
    self.sampling, self.scheme = config.resolve(budget, steps_per_epoch)
    self._recipe = averager_state.recipe(config, self.sampling, self.scheme)
    self.placement = (
      None
      if isinstance(self.scheme, Raw)
      else build_placement(
        config.averaging_placement,
        self.scheme,
        self._data(),
        config.averaging_checkpoints,
      )
    )
    self.choice = Choice(self.scheme)
    self.step = 0
    self.skipped = 0
    # The raw weights while the average is swapped in: their storages under
    # 'exchange', copies of them under 'copy'.
    self._raw: list[Tensor] | None = None
    self._backup: list[Tensor] | None = None

  @property
  def samples(self) -> int:
    """Number of samples that have entered the average."""
    return 0 if self.placement is None else self.placement.count

  @property
  def swapped(self) -> bool:
    """Whether the model holds the average at the moment."""
    return self._raw is not None

  def follow_budget(self, budget: int) -> None:
    """Sample at the cadence of another budget from the next step on.

    The length of the average stays what it is in samples. So a horizon that is
    a fraction of T follows T; what has been sampled keeps its weight.

    Args:
      budget: T, in steps, >= 1.
    """
    self.sampling = self._config.sampling(budget, self._steps_per_epoch)
    if self.placement is not None:
      self._recipe |= dataclasses.asdict(self.sampling)

  def update(self, finite: bool | None = None) -> None:
    """Call after every optimizer step: counts it, and samples if it is due.

    Args:
      finite: whether all weights are known to be finite; None looks at them,
        at the price of one read (and, on a GPU, one synchronisation) for each
        sample.
    """
    if self.swapped:
      raise RuntimeError(
        'The model holds the average. Call swap_out() before training goes on.'
      )
    self.step += 1
    if self.placement is not None and self.sampling.is_sampled(self.step):
      self._sample(self.placement, finite)

  @_outside_autograd
  def _sample(self, placement: DevicePlacement, finite: bool | None) -> None:
    tensors = [weight.data for weight in self._weights] + self._statistics_now()
    if multi_tensor.all_finite(tensors) if finite is None else finite:
      placement.add(tensors)
    else:
      self.skipped += 1
      logging.warning(
        'Step %d: the weights are not finite and did not enter the average '
        '(%d samples skipped so far).',
        self.step,
        self.skipped,
      )

  def select(self, which: int) -> None:
    """Choose what evaluation sees from now on, with averaging_scheme='auto'.

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

  @_outside_autograd
  def swap_in(self) -> None:
    """Show the average; nothing happens if it is shown already.

    With averaging_placement='sharded' every rank must call it: one all-gather,
    and the start of another one to rank 0 for the checkpoint.
    """
    if self.swapped or self.placement is None or not self.samples:
      return
    self.placement.collect()
    if self.choice.shows_raw:
      return
    raw = self._data()
    shown = self.placement.shown(raw, self.choice.selected)
    if self._exchange:
      self._exchange_in(raw, shown)
    else:
      self._copy_in(raw, shown)

  @_outside_autograd
  def swap_out(self) -> None:
    """Put the raw weights back; nothing happens if they are in place."""
    if self._raw is None:
      return
    if self._exchange:
      for tensor, raw in zip(self._tensors(), self._raw, strict=True):
        tensor.data = raw
    else:
      multi_tensor.copy_(self._data(), self._raw)
    self._raw = None

  @contextlib.contextmanager
  def evaluating(self) -> Iterator[None]:
    """Show the average inside the block, the raw weights after it."""
    was_swapped = self.swapped
    try:
      self.swap_in()
      yield
    finally:
      if not was_swapped:
        self.swap_out()

  def state_dict(self) -> dict[str, Any]:
    """Everything needed to continue, in tensors, numbers, strings and dicts.

    The raw weights are among it while the average is swapped in, since the
    model's own state dict then holds the average. Tensors are not copied. The
    state does not depend on the placement and loads into any other. It makes
    no collective: what a sharded average needs of other ranks is on its way to
    rank 0 since `swap_in`. Where it is not (on another rank, after a sample
    since, or with averaging_checkpoints=False) the state says so and cannot be
    loaded.
    """
    buffers = [] if self.placement is None else self.placement.buffers()
    return {
      'format': averager_state.FORMAT,
      'recipe': dict(self._recipe),
      'step': self.step,
      'samples': self.samples,
      'skipped': self.skipped,
      'selected': self.choice.selected,
      'swapped': self.swapped,
      'complete': buffers is not None,
      'buffers': [self._by_name(tensors) for tensors in buffers or []],
      'raw': {} if self._raw is None else self._by_name(self._raw),
    }

  @_outside_autograd
  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Continue from a saved state, with the average shown if it was then.

    The model has to be restored too, before or after. If the average was
    swapped in, the model holds it again afterwards and `swap_out` gives the raw
    weights; that is a collective with averaging_placement='sharded'.

    Raises:
      ValueError: for a state of another scheme, horizon or model; nothing has
        been changed then.
    """
    shapes = zip(self._names, (t.shape for t in self._tensors()), strict=True)
    averager_state.check(state_dict, self.scheme, self._recipe, dict(shapes))
    raw = state_dict['raw']
    if self._raw is not None:
      # They may be this averager's own, which are about to be overwritten.
      raw = {name: tensor.clone() for name, tensor in raw.items()}
      # The model may have been restored already, in place of the average.
      multi_tensor.copy_(self._raw, self._data())
      self.swap_out()
    self.step = state_dict['step']
    self.skipped = state_dict['skipped']
    self.choice.selected = state_dict['selected']
    if self.placement is not None:
      saved = [self._in_order(named) for named in state_dict['buffers']]
      self.placement.restore(state_dict['samples'], saved, self._data())
    if state_dict['swapped']:
      multi_tensor.copy_(self._data(), self._in_order(raw))
      self.swap_in()

  def _tensors(self) -> list[Tensor]:
    """Weights and running statistics, as `_names` names them."""
    return self._weights + [s.tensor for s in self._statistics]

  def _data(self) -> list[Tensor]:
    return [tensor.data for tensor in self._tensors()]

  def _statistics_now(self) -> list[Tensor]:
    """Running statistics for a sample: copies, which outlive the next forward.

    One buffer for each device and dtype, and one broadcast.
    """
    result = [s.tensor for s in self._statistics]
    for kind in dict.fromkeys((t.device, t.dtype) for t in result):
      places = [i for i, t in enumerate(result) if (t.device, t.dtype) == kind]
      parts = [result[i] for i in places]
      flat = torch.cat([t.reshape(-1) for t in parts])
      if self._collective and world_size() > 1:
        dist.broadcast(flat, src=0)
      copies = flat.split([t.numel() for t in parts])
      for i, copy in zip(places, copies, strict=True):
        result[i] = copy.view(result[i].shape)
    return result

  def _exchange_in(self, raw: list[Tensor], shown: list[Tensor]) -> None:
    # Before anything is exchanged: swap_out can then undo half a swap.
    self._raw = raw
    count = len(self._weights)
    # Layers write to statistics in place: whoever recomputes them for the
    # average (torch's update_bn) must not write to the average itself.
    shown = shown[:count] + [t.clone() for t in shown[count:]]
    for tensor, average in zip(self._tensors(), shown, strict=True):
      tensor.data = average

  def _copy_in(self, raw: list[Tensor], shown: list[Tensor]) -> None:
    if self._backup is None:
      self._backup = [torch.empty_like(t) for t in raw]
    multi_tensor.copy_(self._backup, raw)
    self._raw = self._backup
    multi_tensor.copy_(raw, shown)

  def _by_name(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(self._names, tensors, strict=True))

  def _in_order(self, named: dict[str, Tensor]) -> list[Tensor]:
    return [named[name] for name in self._names]


def _named_weights(
  weights: nn.Module | Iterable[tuple[str, Tensor]],
) -> tuple[list[str], list[Tensor]]:
  if isinstance(weights, nn.Module):
    named: list[tuple[str, Tensor]] = [
      (name, parameter)
      for name, parameter in models.named_parameters(weights)
      if parameter.requires_grad
    ]
  else:
    named = list(weights)
    for name, tensor in named:
      if not (tensor.is_floating_point() or tensor.is_complex()):
        raise ValueError(
          f'Invalid weights: {name!r} is {tensor.dtype}. Must be '
          'floating-point or complex.'
        )
  if not named:
    raise ValueError('Invalid weights: there are none.')
  names = [name for name, _ in named]
  for name, count in collections.Counter(names).items():
    if count > 1:
      raise ValueError(f'Invalid weights: two tensors are called {name!r}.')
  return names, [tensor for _, tensor in named]
