"""NadamW: Adam with decoupled decay and a Nesterov look-ahead."""

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from weightavg.pytorch import multi_tensor


class NadamW(torch.optim.Optimizer):
  """AlgoPerf's NAdamW (Choi et al. 2019, 1910.05446, table 1), in one sweep.

  With g the gradient at step t = 1, 2, ... of a parameter:

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
    n = b1 m + (1 - b1) g                           (the Nesterov look-ahead)
    p <- p (1 - lr wd)
    p <- p - lr / (1 - b1^t) * n / (sqrt(v) / sqrt(1 - b2^t) + eps)

  `torch.optim.NAdam` is another algorithm: its momentum follows a schedule.
  Moments are float32 for parameters of half precision, of the parameter's
  dtype otherwise; parameters of half precision are updated in float32 and
  rounded once. A parameter without gradient is left alone, decay included, and
  its own t stands still.

  Args:
    params: parameters or parameter groups.
    lr: learning rate, in [0, inf).
    betas: (b1, b2), each in [0, 1).
    eps: added to the denominator, in [0, inf).
    weight_decay: decoupled decay, in [0, inf).
    fused: None runs a few operations over pieces that fit the cache (on a GPU,
      multi-tensor operations); 'compile' has torch.compile make one kernel of
      them, which takes a compiler: without one, the first step warns and goes
      on as with None.

  Raises:
    ValueError: for an argument out of range or a complex parameter.
    RuntimeError: from `step`, for a sparse gradient.

  >>> p = torch.nn.Parameter(torch.tensor([1.0]))
  >>> optimizer = NadamW([p], lr=0.1, betas=(0.9, 0.999))
  >>> p.grad = torch.tensor([2.0])
  >>> optimizer.step()
  >>> round(p.item(), 4)  # 1 - 0.1 (1 + 0.9)
  0.81
  """

  def __init__(
    self,
    params: Iterable[Any],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    fused: str | None = None,
  ) -> None:
    for name, value in (
      ('lr', lr),
      ('eps', eps),
      ('weight_decay', weight_decay),
    ):
      if not 0.0 <= value < math.inf:
        raise ValueError(f'Invalid {name}={value}. Must be in [0, inf).')
    if len(betas) != 2:
      raise ValueError(f'Invalid betas={betas}. Must be two numbers.')
    for index, beta in enumerate(betas):
      if not 0.0 <= beta < 1.0:
        raise ValueError(f'Invalid betas[{index}]={beta}. Must be in [0, 1).')
    if fused not in (None, 'compile'):
      raise ValueError(f'Invalid fused={fused!r}. Must be None or compile.')
    defaults = {
      'lr': lr,
      'betas': betas,
      'eps': eps,
      'weight_decay': weight_decay,
    }
    super().__init__(params, defaults)
    self._compiled = fused == 'compile'
    self._scratch: dict[torch.dtype, Tensor] = {}
    for group in self.param_groups:
      for p in group['params']:
        if p.is_complex():
          raise ValueError('Invalid params. NadamW takes no complex tensors.')

  def __setstate__(self, state: dict[str, Any]) -> None:
    # torch's copies and pickles of an optimizer keep state and groups only.
    super().__setstate__(state)
    self.__dict__.setdefault('_compiled', False)
    self.__dict__.setdefault('_scratch', {})

  @torch.no_grad()
  def step(  # type: ignore[override]
    self, closure: Callable[[], Tensor] | None = None
  ) -> Tensor | None:
    """Make one step; `closure`, if given, recomputes the loss first."""
    loss = None
    if closure is not None:
      with torch.enable_grad():
        loss = closure()
    for group in self.param_groups:
      # Parameters that missed a gradient lag behind: one sweep for each t.
      by_step: dict[int, list[Tensor]] = {}
      for p in group['params']:
        if p.grad is not None:
          by_step.setdefault(self._advance(p), []).append(p)
      for t, params in by_step.items():
        self._sweep(params, t, group)
    return loss

  def _advance(self, p: Tensor) -> int:
    if p.grad.is_sparse:  # type: ignore[union-attr]
      raise RuntimeError('Invalid gradient. NadamW takes no sparse tensors.')
    state = self.state[p]
    if not state:
      dtype = torch.promote_types(p.dtype, torch.float32)
      state['step'] = 0
      state['exp_avg'] = torch.zeros_like(p, dtype=dtype)
      state['exp_avg_sq'] = torch.zeros_like(p, dtype=dtype)
    state['step'] += 1
    return state['step']

  def _sweep(self, params: list[Tensor], t: int, group: dict) -> None:
    lists = (
      params,
      [p.grad for p in params],
      [self.state[p]['exp_avg'] for p in params],
      [self.state[p]['exp_avg_sq'] for p in params],
    )
    for tensors in multi_tensor.by_device_and_dtype(*lists):  # type: ignore[arg-type]
      if self._compiled and self._update_compiled(tensors, t, group):
        continue
      for piece in multi_tensor.pieces(*tensors):
        _update(piece, t, group, self._scratch)

  def _update_compiled(
    self, tensors: list[list[Tensor]], t: int, group: dict[str, Any]
  ) -> bool:
    """Whether the compiled kernel made the step; False: nothing has changed."""
    try:
      _compiled_update()(*tensors, *_scalars(t, group))
    # Whatever goes wrong in a compiler goes wrong before the kernel runs.
    except Exception as error:
      self._compiled = False
      warnings.warn(
        f"NadamW(fused='compile') runs uncompiled: {type(error).__name__}.",
        stacklevel=4,
      )
      return False
    return True

  def load_state_dict(self, state_dict: dict) -> None:
    """Restore; moments keep their saved dtype, which torch would cast."""
    super().load_state_dict(state_dict)
    params = [p for group in self.param_groups for p in group['params']]
    for index, saved in state_dict['state'].items():
      p = params[index]
      for name in ('exp_avg', 'exp_avg_sq'):
        self.state[p][name] = saved[name].to(p.device, copy=True)


def _update(
  piece: list[list[Tensor]],
  t: int,
  group: dict[str, Any],
  scratch: dict[torch.dtype, Tensor],
) -> None:
  """One step over tensors that stay in the cache from line to line."""
  params, grads, exp_avgs, exp_avg_sqs = piece
  wide = exp_avgs[0].dtype
  weights = params
  if params[0].dtype != wide:
    weights = [p.to(wide) for p in params]
  if grads[0].dtype != wide:
    grads = [g.to(wide) for g in grads]
  torch._foreach_lerp_(exp_avgs, grads, 1.0 - group['betas'][0])
  lists = (weights, grads, exp_avgs, exp_avg_sqs)
  plain = all(x.is_contiguous() for tensors in lists for x in tensors)
  if plain and weights[0].device.type == 'cpu':
    copies = _borrow(scratch, exp_avgs)
    torch._foreach_copy_(copies, exp_avgs)
    _finish_by_adamw(weights, grads, copies, exp_avg_sqs, t, group)
  else:
    _finish_by_foreach(weights, grads, exp_avgs, exp_avg_sqs, t, group)
  if weights is not params:
    torch._foreach_copy_(params, weights)


def _borrow(
  scratch: dict[torch.dtype, Tensor], tensors: list[Tensor]
) -> list[Tensor]:
  """Memory like the tensors' from a buffer that is kept: new memory would cost
  a page fault every few kilobytes.
  """
  dtype, sizes = tensors[0].dtype, [t.numel() for t in tensors]
  if dtype not in scratch or scratch[dtype].numel() < sum(sizes):
    scratch[dtype] = torch.empty(sum(sizes), dtype=dtype)
  parts = scratch[dtype][: sum(sizes)].split(sizes)
  return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def _finish_by_adamw(
  weights: list[Tensor],
  grads: list[Tensor],
  copies: list[Tensor],
  exp_avg_sqs: list[Tensor],
  t: int,
  group: dict[str, Any],
) -> None:
  """The step after m's update, by torch's fused AdamW kernel.

  AdamW turns a buffer x into b1 x + (1 - b1) g and steps along it. For x = m,
  updated already, that is the look-ahead n. The kernel writes to its buffer:
  it gets a copy, of one piece, in the cache.
  """
  torch._fused_adamw_(
    weights,
    grads,
    copies,
    exp_avg_sqs,
    [],
    [torch.tensor(float(t))] * len(weights),
    lr=group['lr'],
    beta1=group['betas'][0],
    beta2=group['betas'][1],
    weight_decay=group['weight_decay'],
    eps=group['eps'],
    amsgrad=False,
    maximize=False,
  )


def _finish_by_foreach(
  weights: list[Tensor],
  grads: list[Tensor],
  exp_avgs: list[Tensor],
  exp_avg_sqs: list[Tensor],
  t: int,
  group: dict[str, Any],
) -> None:
  """The step after m's update, operation by operation: any device, any strides.

  With c = sqrt(1 - b2^t), n / (sqrt(v) / c + eps) = c n / (sqrt(v) + c eps).
  """
  beta1, beta2 = group['betas']
  lr, weight_decay = group['lr'], group['weight_decay']
  correction = math.sqrt(1.0 - beta2**t)
  torch._foreach_mul_(exp_avg_sqs, beta2)
  torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1.0 - beta2)
  denominators = torch._foreach_sqrt(exp_avg_sqs)
  torch._foreach_add_(denominators, correction * group['eps'])
  if weight_decay:
    torch._foreach_mul_(weights, 1.0 - lr * weight_decay)
  # n = g + b1 (m - g)
  directions = torch._foreach_lerp(grads, exp_avgs, beta1)
  step_size = lr * correction / (1.0 - beta1**t)
  torch._foreach_addcdiv_(weights, directions, denominators, -step_size)


def _scalars(t: int, group: dict[str, Any]) -> list[Tensor]:
  """What changes from step to step, as tensors: numbers would recompile."""
  beta1, beta2 = group['betas']
  values = (
    group['lr'] / (1.0 - beta1**t),
    1.0 - group['lr'] * group['weight_decay'],
    math.sqrt(1.0 - beta2**t),
    group['eps'],
    beta1,
    beta2,
  )
  return [torch.tensor(value, dtype=torch.float64) for value in values]


def _plain_update(
  params: list[Tensor],
  grads: list[Tensor],
  exp_avgs: list[Tensor],
  exp_avg_sqs: list[Tensor],
  step_size: Tensor,
  decay: Tensor,
  correction: Tensor,
  eps: Tensor,
  beta1: Tensor,
  beta2: Tensor,
) -> None:
  """One step, written for a compiler: one expression for each tensor."""
  for p, grad, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
    g = grad.to(m.dtype)
    new_m = g + beta1 * (m - g)
    new_v = beta2 * v + (1.0 - beta2) * (g * g)
    m.copy_(new_m)
    v.copy_(new_v)
    n = g + beta1 * (new_m - g)
    wide = p.to(m.dtype) * decay
    p.copy_(wide - step_size * n / (new_v.sqrt() / correction + eps))


@functools.cache
def _compiled_update() -> Callable[..., None]:
  return torch.compile(_plain_update, dynamic=False)
