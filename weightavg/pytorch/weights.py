"""The tensors that are averaged, by name, and how they follow the model."""

import collections
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from weightavg.pytorch import dtensors, models, multi_tensor
from weightavg.pytorch.distributed import group_of


class Weights:
  """Trained parameters of a model, and its running statistics.

  Parameters are bound by their place in the model: one that was replaced by
  another of the same name, shape and dtype, as `load_state_dict(assign=True)`
  does, is followed. Distributed parameters are DTensors, of which each rank
  averages its own piece.

  Args:
    weights: a model, wrapped or not, or pairs of a name and a tensor.
    with_statistics: average running statistics, too.

  Raises:
    ValueError: there are none, two have the same name, or one is no
      floating-point or complex tensor.
  """

  def __init__(
    self,
    weights: nn.Module | Iterable[tuple[str, Tensor]],
    with_statistics: bool,
  ) -> None:
    self.model = (
      models.unwrap(weights) if isinstance(weights, nn.Module) else None
    )
    named: list[tuple[str, Tensor]] = []
    self.statistics: list[models.Statistic] = []
    # Those that no average holds among them.
    self._live: list[models.Statistic] = []
    if self.model is None:
      if not isinstance(weights, Iterable):
        raise _not_weights(weights)
      # Tied ones under their first name, as of a model.
      unique: dict[int, tuple[str, Tensor]] = {}
      for pair in weights:
        name, tensor = _checked(pair)
        unique.setdefault(id(tensor), (name, tensor))
      named = list(unique.values())
    else:
      dtensors.check_wrapper(self.model)
      named += _trained(self.model)
      self._live = list(models.running_statistics(self.model))
      if with_statistics:
        self.statistics = list(self._live)
    if not named:
      raise ValueError('Invalid weights: there are none.')
    self._bind([tensor for _, tensor in named])
    self.names = [name for name, _ in named]
    self.names += [statistic.name for statistic in self.statistics]
    for name, count in collections.Counter(self.names).items():
      if count > 1:
        raise ValueError(f'Invalid weights: two tensors are called {name!r}.')
    self._seen = self._tree()

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self.ids = {id(p) for p in self.parameters}

  @property
  def tensors(self) -> list[Tensor]:
    """Parameters and running statistics, as `names` names them."""
    return self.parameters + [s.tensor for s in self.statistics]

  @property
  def are_parameters(self) -> bool:
    """True if a swap of storages reaches the model.

    A tensor that is no parameter may be an alias, as in a state dict.
    """
    return self.model is not None or all(
      isinstance(tensor, nn.Parameter) for tensor in self.parameters
    )

  def data(self) -> list[Tensor]:
    """The memory of `tensors`, of DTensors this rank's pieces."""
    return [dtensors.local(tensor) for tensor in self.tensors]

  def counters(self) -> dict[str, Tensor]:
    """Numbers of batches that the averaged running statistics have seen."""
    return dict(c for s in self.statistics if (c := s.counter) is not None)

  def live_statistics(self) -> dict[str, Tensor]:
    """Running statistics of the model and their counters, averaged or not."""
    counters = [c for s in self._live if (c := s.counter) is not None]
    return {s.name: s.tensor for s in self._live} | dict(counters)

  def set_counters(self, counters: Mapping[str, Tensor]) -> None:
    """Write the numbers of batches to the layers that have them."""
    for name, counter in self.counters().items():
      if name in counters:
        counter.copy_(counters[name])

  def sample(self, collective: bool | dist.ProcessGroup) -> list[Tensor]:
    """The memory of the parameters, and copies of the running statistics."""
    parameters = [dtensors.local(p) for p in self.parameters]
    return parameters + self.statistics_now(collective)

  def statistics_now(
    self, collective: bool | dist.ProcessGroup
  ) -> list[Tensor]:
    """Running statistics as copies, which outlive the next forward pass.

    Args:
      collective: take those of the first rank, of all or of a group; one
        broadcast for each device and dtype.
    """
    group = group_of(collective)
    copies, blocks = multi_tensor.copies([s.tensor for s in self.statistics])
    if group is not None:
      for block in blocks:
        dist.broadcast(block, src=dist.get_global_rank(group, 0), group=group)
    return copies

  def required_model(self) -> nn.Module:
    """The model without its wrappers.

    Raises:
      RuntimeError: there is none, only tensors.
    """
    if self.model is None:
      raise RuntimeError(
        'The averager was built from tensors. Build it from the model for a '
        'state dict or a copy of the model.'
      )
    return self.model

  def modules(self) -> Iterator[nn.Module]:
    """Modules whose `load_state_dict` would write to the parameters."""
    if self.model is None:
      return
    for module in self.model.modules():
      if not isinstance(module, torch.jit.ScriptModule):
        yield module

  def follow(self) -> None:
    """Bind parameters anew where the model has got others.

    Raises:
      RuntimeError: a parameter is gone, of another shape or dtype or on another
        device, or one is trained that is not averaged.
    """
    self.reshard()
    tree = self._tree()
    if len(tree) == len(self._seen) and all(
      map(operator.is_, tree, self._seen)
    ):
      self._check_places(self.parameters)
      return
    assert self.model is not None
    count = len(self.parameters)
    before = dict(zip(self.names[:count], self.parameters, strict=True))
    now = dict(models.named_parameters(self.model))
    for name, old in before.items():
      if name not in now:
        raise _changed(f'{name!r} is gone')
      if _kind(now[name]) != _kind(old):
        raise _changed(f'{name!r} is {_kind(now[name])}, was {_kind(old)}')
      if now[name] is not old and not now[name].requires_grad:
        raise _changed(f'{name!r} is another, frozen parameter')
    for name, parameter in now.items():
      if name not in before and parameter.requires_grad:
        raise _changed(f'{name!r} is trained now and is not averaged')
    live = list(models.running_statistics(self.model))
    statistics = {s.name: s for s in live}
    for name in self.names[count:]:
      if name not in statistics:
        raise _changed(f'{name!r} is gone')
    parameters: list[Tensor] = [now[name] for name in before]
    self._check_places(parameters)
    self._bind(parameters)
    self.statistics = [statistics[name] for name in self.names[count:]]
    self._live = live
    self._seen = tree

  def _bind(self, parameters: list[Tensor]) -> None:
    self.parameters = parameters
    self.ids = {id(p) for p in parameters}
    # Asked for at each sample and swap.
    self.distributed = [p for p in parameters if dtensors.is_dtensor(p)]
    self._places = [_place(p) for p in parameters]

  def _check_places(self, parameters: Sequence[Tensor]) -> None:
    """Refuse what keeps a parameter's identity, as `model.to(...)` does.

    Raises:
      RuntimeError: a parameter has another dtype or shape or is on another
        device.
    """
    now = [_place(p) for p in parameters]
    if now == self._places:
      return
    for name, place, before in zip(self.names, now, self._places, strict=False):
      if place != before:
        raise _changed(f'{name!r} is {_text(place)}, was {_text(before)}')

  def reshard(self) -> None:
    """Drop whole copies of sharded parameters, which a swap does not reach."""
    if self.model is not None and self.distributed:
      dtensors.reshard(self.model)

  def _tree(self) -> list[Any]:
    """Modules and parameters by identity, and which parameters are frozen."""
    if self.model is None or isinstance(self.model, torch.jit.ScriptModule):
      return []
    tree: list[Any] = []
    stack: list[Any] = [self.model]
    while stack:
      module = stack.pop()
      if module is None:
        continue
      tree.append(module)
      for parameter in module._parameters.values():
        if parameter is not None:
          # None and the parameter are told apart by identity, too.
          tree += (parameter, None if parameter.requires_grad else _FROZEN)
      stack.extend(module._modules.values())
    return tree


_FROZEN = object()


def _trained(model: nn.Module) -> list[tuple[str, Tensor]]:
  trained: list[tuple[str, Tensor]] = [
    (name, parameter)
    for name, parameter in models.named_parameters(model)
    if parameter.requires_grad
  ]
  for name, parameter in trained:
    if nn.parameter.is_lazy(parameter):
      raise ValueError(
        f'Invalid weights: {name!r} has no shape yet. Call the model once '
        'before its averager is built.'
      )
  return trained


def _checked(pair: Any) -> tuple[str, Tensor]:
  if not models.is_named_tensor(pair):
    raise _not_weights(pair)
  name, tensor = pair
  if not (tensor.is_floating_point() or tensor.is_complex()):
    raise ValueError(
      f'Invalid weights: {name!r} is {tensor.dtype}. Must be '
      'floating-point or complex.'
    )
  return name, tensor


def _not_weights(found: Any) -> ValueError:
  return ValueError(
    f'Invalid weights: found a {type(found).__name__}. Must be a model, or '
    'pairs of a name and a tensor such as model.named_parameters().'
  )


def _place(tensor: Tensor) -> tuple[torch.dtype, torch.device, torch.Size]:
  return tensor.dtype, tensor.device, tensor.shape


def _text(place: tuple[torch.dtype, torch.device, torch.Size]) -> str:
  dtype, device, shape = place
  return f'{tuple(shape)} of {dtype} on {device}'


def _kind(tensor: Tensor) -> str:
  kind = f'{tuple(tensor.shape)} of {tensor.dtype}'
  if dtensors.is_dtensor(tensor):
    kind += f' on {tensor.device_mesh} as {tensor.placements}'  # type: ignore[attr-defined]
  return kind


def _changed(what: str) -> RuntimeError:
  return RuntimeError(
    f'The model has changed since its averager was built: {what}. Build a new '
    'Averager for it.'
  )
