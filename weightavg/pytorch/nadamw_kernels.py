"""The arithmetic of one NadamW step, by torch's fused kernel or compiled.

All tensors of a call have the same step count t. Columns are parallel lists:
parameters, gradients, first moments m (none where beta1 = 0), second moments v
and the tensors that follow the parameters (`followers`), if there are any.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightavg.pytorch import multi_tensor
from weightavg.pytorch.followers import Followers


class Kernel:
  """One step of NadamW with its hyperparameters.

  Args:
    t: the step, 1, 2, ...
    group: hyperparameters.
    followers: move along with the parameters; None if nothing does.
    scratch: memory that is reused from call to call.
  """

  def __init__(
    self,
    t: int,
    group: Mapping[str, Any],
    followers: Followers | None,
    scratch: dict[torch.dtype, Tensor],
  ) -> None:
    self._t = t
    self._group = group
    self._followers = followers
    self._scratch = scratch

  def _split(self, columns: Sequence[list[Tensor]]) -> tuple[Any, ...]:
    """Return parameters, gradients, m or None, v, followers or None."""
    rest = list(columns)
    following = rest.pop() if self._followers is not None else None
    exp_avg_sqs = rest.pop()
    exp_avgs = rest.pop() if len(rest) > 2 else None
    return (*rest, exp_avgs, exp_avg_sqs, following)

  def update_each(self, columns: Sequence[list[Tensor]]) -> None:
    """Make the step tensor by tensor, whatever the strides are."""
    arguments = (*self._split(columns), *self._numbers())
    _update_each(*arguments)

  def update_compiled(self, columns: Sequence[list[Tensor]]) -> None:
    """Make the step by one kernel that torch.compile generates."""
    _compiled_update()(*self._split(columns), *self._numbers())

  def update_by_adamw(self, columns: Sequence[list[Tensor]]) -> None:
    """Make the step with torch's fused AdamW kernel.

    AdamW turns a buffer x into b1 x + (1 - b1) g and steps along it. For x = m,
    updated already, that is the look-ahead n. The kernel writes to the buffer,
    so it gets a copy of m, on a CPU one that is still in the cache.
    """
    params, grads, exp_avgs, exp_avg_sqs, following = self._split(columns)
    group, followers = self._group, self._followers
    wide, device = exp_avg_sqs[0].dtype, exp_avg_sqs[0].device
    weights = params
    if params[0].dtype != wide:
      weights = [p.to(wide) for p in params]
    if grads[0].dtype != wide:
      grads = [g.to(wide) for g in grads]
    skip = None if followers is None else followers.flag
    if exp_avgs is None:
      exp_avgs = grads
    elif skip is None:
      torch._foreach_lerp_(exp_avgs, grads, 1.0 - group['betas'][0])
    else:
      multi_tensor.skipping_lerp_(
        exp_avgs, grads, 1.0 - group['betas'][0], skip
      )
    copies = (
      _borrow(self._scratch, exp_avg_sqs)
      if device.type == 'cpu'
      else [torch.empty_like(v) for v in exp_avg_sqs]
    )
    torch._foreach_copy_(copies, exp_avgs)
    if followers is not None:
      torch._foreach_lerp_(following, params, followers.before)
    # Dtype and device are given: torch's defaults may be bfloat16 or meta.
    step = torch.full((), float(self._t), dtype=torch.float32, device=device)
    torch._fused_adamw_(
      weights,
      grads,
      copies,
      exp_avg_sqs,
      [],
      [step] * len(weights),
      lr=float(group['lr']),
      beta1=group['betas'][0],
      beta2=group['betas'][1],
      weight_decay=group['weight_decay'],
      eps=group['eps'],
      amsgrad=False,
      maximize=False,
      found_inf=skip,
    )
    if weights is not params:
      torch._foreach_copy_(params, weights)
    if followers is None:
      return
    if skip is None:
      torch._foreach_lerp_(following, params, followers.after)
    else:
      multi_tensor.skipping_lerp_(following, params, followers.after, skip)

  def _numbers(self) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Return the numbers of the step as tensors: numbers would recompile."""
    beta1, beta2 = self._group['betas']
    lr = float(self._group['lr'])
    numbers = (
      lr / (1.0 - beta1**self._t),
      1.0 - lr * self._group['weight_decay'],
      math.sqrt(1.0 - beta2**self._t),
      self._group['eps'],
      beta1,
      beta2,
    )
    f = self._followers
    if f is None:
      return _scalars(*numbers), [], None
    return _scalars(*numbers), _scalars(f.before, f.after), f.flag


def _scalars(*values: float) -> list[Tensor]:
  return [
    torch.tensor(value, dtype=torch.float64, device='cpu') for value in values
  ]


def _borrow(
  scratch: dict[torch.dtype, Tensor], tensors: list[Tensor]
) -> list[Tensor]:
  """Cut tensors of the given shapes from a CPU buffer that is kept."""
  dtype, sizes = tensors[0].dtype, [t.numel() for t in tensors]
  if dtype not in scratch or scratch[dtype].numel() < sum(sizes):
    scratch[dtype] = torch.empty(sum(sizes), dtype=dtype, device='cpu')
  parts = scratch[dtype][: sum(sizes)].split(sizes)
  return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def _update_each(
  params: Sequence[Tensor],
  grads: Sequence[Tensor],
  exp_avgs: Sequence[Tensor] | None,
  exp_avg_sqs: Sequence[Tensor],
  following: Sequence[Tensor] | None,
  numbers: Sequence[Tensor],
  follow: Sequence[Tensor],
  skip: Tensor | None,
) -> None:
  """Make one step tensor by tensor: for a compiler, and for any strides."""
  step_size, decay, correction, eps, beta1, beta2 = numbers
  for i, (p, grad, v) in enumerate(
    zip(params, grads, exp_avg_sqs, strict=True)
  ):
    g = grad.to(v.dtype)
    n = g
    if exp_avgs is not None:
      m = exp_avgs[i]
      new_m = _unless(skip, g + beta1 * (m - g), m)
      m.copy_(new_m)
      n = g + beta1 * (new_m - g)
    new_v = _unless(skip, beta2 * v + (1.0 - beta2) * (g * g), v)
    v.copy_(new_v)
    wide = p.to(v.dtype)
    new_p = wide * decay - step_size * n / (new_v.sqrt() / correction + eps)
    new_p = _unless(skip, new_p, wide)
    if following is not None:
      before, after = follow
      f = following[i]
      middle = f + before * (p - f)
      new_f = middle + after * (new_p.to(p.dtype) - middle)
      f.copy_(_unless(skip, new_f, middle))
    p.copy_(new_p)


def _unless(skip: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
  return new if skip is None else torch.where(skip > 0, old, new)


@functools.cache
def _compiled_update() -> Callable[..., None]:
  return torch.compile(_update_each, dynamic=False)
