"""Operations over all tensors of a model in few passes over memory.

On a GPU one multi-tensor launch covers the model. On a CPU a chain of
multi-tensor operations would stream the whole model from memory once per
operation; here the chain runs piece by piece, each small enough to stay in the
cache between two operations. Single operations need no pieces.

Parallel lists of tensors agree in shape and device; strides and dtypes may
differ.
"""

import cmath
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Elements of one piece: short enough that the handful of tensors of a chain
# stays in the caches from one operation to the next, long enough that two
# threads share it and the dispatch of an operation does not show.
PIECE = 1 << 17
# A sum over many samples keeps one accumulator of a piece and reads the rest
# once: pieces may be longer, and fewer.
_SUM_PIECES = 4


def flat(tensor: Tensor) -> Tensor | None:
  """The tensor's memory as one dimension, None if it has gaps or overlaps."""
  if tensor.is_contiguous():
    return tensor.view(-1)
  order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
  dense = tensor.permute(order)
  return dense.view(-1) if dense.is_contiguous() else None


def _cut(
  lists: Sequence[Sequence[Tensor]], size: int
) -> Iterator[list[list[Tensor]]]:
  batch: list[list[Tensor]] = [[] for _ in lists]
  filled = 0
  for group in zip(*lists, strict=True):
    numel = group[0].numel()
    # Memory order is common to a group only where its strides are: a gradient
    # may be laid out otherwise than its channels-last parameter.
    if numel > size and len({t.stride() for t in group}) == 1:
      flats = [flat(t) for t in group]
      if all(f is not None for f in flats):
        for begin in range(0, numel, size):
          yield [[f[begin : begin + size]] for f in flats]  # type: ignore[index]
        continue
    if filled and filled + numel > size:
      yield batch
      batch, filled = [[] for _ in lists], 0
    for part, tensor in zip(batch, group, strict=True):
      part.append(tensor)
    filled += numel
  if filled:
    yield batch


def pieces(
  *lists: Sequence[Tensor], size: int | None = None
) -> Iterator[list[list[Tensor]]]:
  """Cut lists of tensors alike into batches that fit the cache.

  Args:
    *lists: lists of equal length; the i-th tensors agree in shape.
    size: elements of a piece; PIECE unless given.

  Yields:
    One list of (views of) tensors for each argument; on a GPU once, with
    everything.
  """
  if lists[0] and lists[0][0].device.type != 'cpu':
    yield [list(tensors) for tensors in lists]
  else:
    yield from _cut(lists, PIECE if size is None else size)


def _alike(lists: Sequence[Sequence[Tensor]]) -> bool:
  """True if each list has one device and dtype, as in most models."""
  return len({len(tensors) for tensors in lists}) == 1 and all(
    len({t.dtype for t in tensors}) <= 1
    and len({t.device for t in tensors}) <= 1
    for tensors in lists
  )


def by_device_and_dtype(
  *lists: Sequence[Tensor],
) -> Iterator[list[list[Tensor]]]:
  """Group positions whose tensors agree in device and dtype, list by list."""
  if _alike(lists):
    if lists[0]:
      yield [list(tensors) for tensors in lists]
    return
  groups: dict[tuple, list[list[Tensor]]] = {}
  for group in zip(*lists, strict=True):
    key = tuple((t.device, t.dtype) for t in group)
    entry = groups.setdefault(key, [[] for _ in lists])
    for part, tensor in zip(entry, group, strict=True):
      part.append(tensor)
  yield from groups.values()


def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
  """targets <- sources, cast where dtypes differ."""
  if targets:
    torch._foreach_copy_(list(targets), list(sources))


def copies(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
  """Copy small tensors into few blocks of memory.

  Returns:
    The copies, and the block of each device and dtype, of which they are views.
  """
  result, blocks = list(tensors), []
  for kind in dict.fromkeys((t.device, t.dtype) for t in result):
    places = [i for i, t in enumerate(result) if (t.device, t.dtype) == kind]
    parts = [result[i] for i in places]
    block = torch.cat([t.reshape(-1) for t in parts])
    blocks.append(block)
    views = block.split([t.numel() for t in parts])
    for i, own in zip(places, views, strict=True):
      result[i] = own.view(result[i].shape)
  return result, blocks


def lerp_(
  averages: Sequence[Tensor], samples: Sequence[Tensor], weight: float
) -> None:
  """averages <- averages + weight (samples - averages), in averages' dtype."""
  for group in by_device_and_dtype(averages, samples):
    if group[0][0].dtype == group[1][0].dtype:
      torch._foreach_lerp_(group[0], group[1], weight)
      continue
    for average, sample in pieces(*group):
      cast = [s.to(a.dtype) for a, s in zip(average, sample, strict=True)]
      torch._foreach_lerp_(average, cast, weight)


def lerp_all_(
  averages: Sequence[Sequence[Tensor]],
  samples: Sequence[Tensor],
  weights: Sequence[float],
) -> None:
  """`lerp_` of several averages, for which the samples are read once."""
  for group in by_device_and_dtype(samples, *averages):
    for sample, *parts in pieces(*group):
      for part, weight in zip(parts, weights, strict=True):
        if part[0].dtype == sample[0].dtype:
          torch._foreach_lerp_(part, sample, weight)
        else:
          lerp_(part, sample, weight)


def mean_(
  targets: Sequence[Tensor], windows: Sequence[Sequence[Tensor]]
) -> None:
  """targets <- mean of the windows, summed in targets' dtype, oldest first."""
  for group in by_device_and_dtype(targets, *windows):
    for target, *samples in pieces(*group, size=_SUM_PIECES * PIECE):
      torch._foreach_copy_(target, samples[0])
      for sample in samples[1:]:
        torch._foreach_add_(target, sample)
      torch._foreach_div_(target, float(len(samples)))


def skipping_lerp_(
  averages: Sequence[Tensor],
  samples: Sequence[Tensor],
  weight: float,
  skip: Tensor,
) -> None:
  """`lerp_` on an accelerator, or nothing if `skip` is 1 there.

  The fused kernel of torch.optim.SGD steps from a to a - weight (a - x) with
  the gradient -x and a weight decay of 1; like GradScaler's `found_inf`, the
  flag makes it leave a as it is, whatever x holds.

  Args:
    averages: float32 or wider.
    samples: on the same device.
    weight: of the samples.
    skip: 0-dimensional float32 on that device, 0 or 1.
  """
  for average, sample in by_device_and_dtype(averages, samples):
    cast = [s.to(a.dtype) for a, s in zip(average, sample, strict=True)]
    if (
      average[0].is_cuda
      and not average[0].is_complex()
      and all(map(_is_laid_out_alike, average, cast))
    ):
      torch._fused_sgd_(
        average,
        cast,
        [],
        weight_decay=1.0,
        momentum=0.0,
        lr=weight,
        dampening=0.0,
        nesterov=False,
        maximize=True,
        is_first_step=False,
        grad_scale=None,
        found_inf=skip,
      )
    else:
      for a, s in zip(average, cast, strict=True):
        a.lerp_(torch.where(skip > 0, a, s), weight)


def _is_laid_out_alike(one: Tensor, other: Tensor) -> bool:
  """True for equal strides without gaps, which fused kernels ask for."""
  return one.stride() == other.stride() and flat(one) is not None


def skipping_copy_(
  targets: Sequence[Tensor], sources: Sequence[Tensor], skip: Tensor
) -> None:
  """targets <- sources on an accelerator, or nothing if `skip` is 1 there."""
  for target, source in zip(targets, sources, strict=True):
    target.copy_(torch.where(skip > 0, target, source))


def copy_if_finite_(
  targets: Sequence[Tensor], sources: Sequence[Tensor]
) -> None:
  """targets <- sources, or nothing if an element of these is not finite.

  Nothing waits for an accelerator that has them all.
  """
  devices = {t.device.type for t in sources}
  if len(devices) == 1 and devices != {'cpu'}:
    skipping_copy_(targets, sources, not_finite(sources))
  elif all_finite(sources):
    copy_(targets, sources)


def not_finite(tensors: Sequence[Tensor]) -> Tensor:
  """1 if an element is not finite, else 0, in float32 on the tensors' device.

  The sums are those of `all_finite`.
  """
  floating = [t for t in tensors if t.is_floating_point() or t.is_complex()]
  sums = [
    torch.stack(
      torch._foreach_norm(
        group, 1, torch.promote_types(group[0].dtype, torch.float32)
      )
    )
    .sum()
    .double()
    for (group,) in by_device_and_dtype(floating)
  ]
  return torch.stack(sums).sum().isfinite().logical_not().float()


def all_finite(tensors: Sequence[Tensor]) -> bool:
  """Test all elements for finiteness; one read, one synchronisation.

  A sum in float32 (or wider) is finite exactly if all its elements are, unless
  it overflows: weights of 1e30 have diverged all the same.
  """
  floating = [t for t in tensors if t.is_floating_point() or t.is_complex()]
  return all(
    _is_sum_finite(group) for (group,) in by_device_and_dtype(floating)
  )


# Tensors of fewer elements are summed together: most tensors of a model are
# small, and an operation takes longer than their elements.
_SMALL = 1 << 13


def _is_sum_finite(tensors: list[Tensor]) -> bool:
  wide = torch.promote_types(tensors[0].dtype, torch.float32)
  if tensors[0].device.type == 'cpu':
    return all(cmath.isfinite(s) for s in _sums_on_cpu(tensors, wide))
  norms = torch._foreach_norm(tensors, 1, wide)
  return bool(torch.stack(norms).sum().isfinite())


def _sums_on_cpu(
  tensors: list[Tensor], wide: torch.dtype
) -> Iterator[complex | float]:
  """Numbers that are finite together exactly if all elements are."""
  small: list[Tensor] = []
  for tensor in tensors:
    if tensor.dtype == wide and tensor.numel() < _SMALL:
      small.append(tensor.reshape(-1))
    else:
      # Faster than a dot product with itself, whose squares may overflow.
      yield tensor.sum(dtype=wide).item()
  for batch in _batches(small):
    yield (torch.cat(batch) if len(batch) > 1 else batch[0]).sum().item()


def _batches(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
  batch: list[Tensor] = []
  filled = 0
  for tensor in tensors:
    if batch and filled + len(tensor) > PIECE:
      yield batch
      batch, filled = [], 0
    batch.append(tensor)
    filled += len(tensor)
  if batch:
    yield batch
