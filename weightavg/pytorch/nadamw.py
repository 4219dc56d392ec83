"""NadamW: Adam with decoupled weight decay and a Nesterov look-ahead."""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightavg.pytorch import dtensors, multi_tensor
from weightavg.pytorch.schedules import (
  peak_learning_rates,
  warn_of_other_peaks,
)

_MOMENTS = ('exp_avg', 'exp_avg_sq')


class NadamW(torch.optim.Optimizer):
  """AlgoPerf's NAdamW (Choi et al. 2019, arXiv 1910.05446, table 1).

  With g the gradient of a parameter p at its step t = 1, 2, ...:

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
    n = b1 m + (1 - b1) g                           (the Nesterov look-ahead)
    p <- p (1 - lr wd)
    p <- p - lr / (1 - b1^t) * n / (sqrt(v) / sqrt(1 - b2^t) + eps)

  `torch.optim.NAdam` is another algorithm, whose momentum follows a schedule.

  Moments have the parameter's dtype, and float32 for 16-bit parameters, which
  are updated in float32 and rounded once. A parameter without a gradient keeps
  its value, decay included, and its own t. DTensor parameters (FSDP2, tensor
  parallelism) are updated shard by shard without communication.

  Args:
    params: parameters or parameter groups.
    lr: learning rate, in [0, inf).
    betas: (b1, b2), each in [0, 1).
    eps: added to the denominator, in [0, inf).
    weight_decay: decoupled decay, in [0, inf).
    fused: None uses torch's fused kernels, on a CPU in pieces that fit the
      cache. 'compile' has torch.compile generate one kernel, which needs a
      compiler; without one the first step warns, and all steps run as for None.

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
    if fused not in (None, 'compile'):
      raise ValueError(f'Invalid fused={fused!r}. Must be None or compile.')
    defaults = {
      'lr': lr,
      'betas': betas,
      'eps': eps,
      'weight_decay': weight_decay,
    }
    _check_hyperparameters(defaults)
    self._compiled = fused == 'compile'
    # Reused by every step: fresh memory costs a page fault per 4 KiB.
    self._scratch: dict[torch.dtype, Tensor] = {}
    super().__init__(params, defaults)

  def add_param_group(self, param_group: dict[str, Any]) -> None:
    """Add parameters with hyperparameters of their own.

    Raises:
      ValueError: for a hyperparameter out of range or a complex parameter.
    """
    _check_hyperparameters(self.defaults | param_group)
    super().add_param_group(param_group)
    if any(p.is_complex() for p in self.param_groups[-1]['params']):
      self.param_groups.pop()
      raise ValueError('Invalid params. NadamW takes no complex tensors.')

  def __getstate__(self) -> dict[str, Any]:
    # torch copies and pickles only defaults, state and groups.
    return super().__getstate__() | {'_compiled': self._compiled}

  def __setstate__(self, state: dict[str, Any]) -> None:
    super().__setstate__(state)
    self.__dict__.setdefault('_compiled', False)
    self.__dict__.setdefault('_scratch', {})

  @torch.no_grad()
  def step(  # type: ignore[override]
    self, closure: Callable[[], Tensor] | None = None
  ) -> Tensor | None:
    """Update the parameters that have a gradient.

    Args:
      closure: computes the loss again and returns it.
    """
    loss = None
    if closure is not None:
      with torch.enable_grad():
        loss = closure()
    for group in self.param_groups:
      # A parameter that missed a gradient has a smaller t than the others.
      by_step: dict[int, list[Tensor]] = {}
      for p in group['params']:
        if p.grad is not None:
          by_step.setdefault(self._count_step(p), []).append(p)
      for t, params in by_step.items():
        self._update(params, t, group)
    return loss

  def _count_step(self, p: Tensor) -> int:
    if p.grad.is_sparse:  # type: ignore[union-attr]
      raise RuntimeError('Invalid gradient. NadamW takes no sparse tensors.')
    state = self.state[p]
    if not state:
      dtype = torch.promote_types(p.dtype, torch.float32)
      state['step'] = 0
      for name in _MOMENTS:
        state[name] = torch.zeros_like(p, dtype=dtype)
    state['step'] += 1
    return state['step']

  def _update(
    self, params: list[Tensor], t: int, group: dict[str, Any]
  ) -> None:
    dense: list[list[Tensor]] = [[], [], [], []]
    for p in params:
      tensors = _local_tensors(p, *(self.state[p][name] for name in _MOMENTS))
      ordered = _in_memory_order(tensors)
      if ordered is None:
        _update_each([[x] for x in tensors], _scalars(t, group))
        continue
      for column, tensor in zip(dense, ordered, strict=True):
        column.append(tensor)
    for columns in multi_tensor.by_device_and_dtype(*dense):
      if self._compiled and self._update_compiled(columns, t, group):
        continue
      for piece in multi_tensor.pieces(*columns):
        _update_by_adamw(piece, t, group, self._scratch)

  def _update_compiled(
    self, columns: list[list[Tensor]], t: int, group: dict[str, Any]
  ) -> bool:
    """Try the compiled kernel; False if it failed, with nothing changed."""
    try:
      _compiled_update()(columns, _scalars(t, group))
    # A compiler raises many kinds of errors, all before the kernel runs.
    except Exception as error:
      self._compiled = False
      warnings.warn(
        f"NadamW(fused='compile') runs uncompiled: {type(error).__name__}.",
        stacklevel=4,
      )
      return False
    return True

  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Restore a state as torch's optimizers do, with moments as they were.

    The saved hyperparameters replace the constructor's, the learning rate
    included. A warning names a peak learning rate that changes.

    torch would cast the moments to the parameters' dtype. They are restored
    from the state that torch's load hooks return, before later hooks run, so
    hooks that rename or reorder the state work as with `torch.optim.AdamW`.
    """
    peaks = peak_learning_rates(self)
    loaded: dict[str, Any] = {}

    def keep(_: Any, state_dict: dict[str, Any]) -> None:
      loaded.update(state_dict)

    def restore(_: Any) -> None:
      saved_params, params = (
        itertools.chain.from_iterable(group['params'] for group in groups)
        for groups in (loaded['param_groups'], self.param_groups)
      )
      for key, p in zip(saved_params, params, strict=True):
        for name in _MOMENTS:
          if name in loaded['state'].get(key, {}):
            moment = loaded['state'][key][name]
            self.state[p][name] = moment.to(p.device, copy=True)

    # The last pre-hook sees what the user's hooks return; the first post-hook
    # comes before theirs.
    handles = (
      self.register_load_state_dict_pre_hook(keep),
      self.register_load_state_dict_post_hook(restore, prepend=True),
    )
    try:
      super().load_state_dict(state_dict)
    finally:
      for handle in handles:
        handle.remove()
    warn_of_other_peaks(self, peaks)


def _check_hyperparameters(group: Mapping[str, Any]) -> None:
  """Raise ValueError for the first hyperparameter out of range."""
  for name in ('lr', 'eps', 'weight_decay'):
    value = group[name]
    if not 0.0 <= value < math.inf:
      raise ValueError(f'Invalid {name}={value}. Must be in [0, inf).')
  betas = group['betas']
  if len(betas) != 2:
    raise ValueError(f'Invalid betas={betas}. Must be two numbers.')
  for index, beta in enumerate(betas):
    if not 0.0 <= beta < 1.0:
      raise ValueError(f'Invalid betas[{index}]={beta}. Must be in [0, 1).')


def _local_tensors(p: Any, *moments: Any) -> list[Tensor]:
  """Return [p, gradient, *moments], of DTensors this rank's shards."""
  grad = p.grad
  if not dtensors.is_dtensor(p):
    return [p, grad, *moments]
  if grad.placements != p.placements:
    grad = grad.redistribute(placements=p.placements)
  return [dtensors.local(t) for t in (p, grad, *moments)]


def _in_memory_order(tensors: Sequence[Tensor]) -> list[Tensor] | None:
  """Return tensors whose memory is dense and ordered alike, None if it is not.

  The fused kernel walks through memory without regard to strides.
  """
  if all(t.is_contiguous() for t in tensors):
    return list(tensors)
  if len({t.stride() for t in tensors}) > 1:
    return None
  flat = [multi_tensor.flat(t) for t in tensors]
  return None if any(t is None for t in flat) else flat  # type: ignore[return-value]


def _update_by_adamw(
  piece: list[list[Tensor]],
  t: int,
  group: Mapping[str, Any],
  scratch: dict[torch.dtype, Tensor],
) -> None:
  """Make one step with torch's fused AdamW kernel.

  AdamW turns a buffer x into b1 x + (1 - b1) g and steps along it. For x = m,
  updated already, that is the look-ahead n. The kernel writes to the buffer, so
  it gets a copy of m, on a CPU one that is still in the cache.
  """
  params, grads, exp_avgs, exp_avg_sqs = piece
  wide, device = exp_avgs[0].dtype, exp_avgs[0].device
  weights = params
  if params[0].dtype != wide:
    weights = [p.to(wide) for p in params]
  if grads[0].dtype != wide:
    grads = [g.to(wide) for g in grads]
  torch._foreach_lerp_(exp_avgs, grads, 1.0 - group['betas'][0])
  copies = (
    _borrow(scratch, exp_avgs)
    if device.type == 'cpu'
    else [torch.empty_like(m) for m in exp_avgs]
  )
  torch._foreach_copy_(copies, exp_avgs)
  # Dtype and device are given: torch's defaults may be bfloat16 or meta.
  step = torch.full((), float(t), dtype=torch.float32, device=device)
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
  )
  if weights is not params:
    torch._foreach_copy_(params, weights)


def _borrow(
  scratch: dict[torch.dtype, Tensor], tensors: list[Tensor]
) -> list[Tensor]:
  """Cut tensors of the given shapes from a CPU buffer that is kept."""
  dtype, sizes = tensors[0].dtype, [t.numel() for t in tensors]
  if dtype not in scratch or scratch[dtype].numel() < sum(sizes):
    scratch[dtype] = torch.empty(sum(sizes), dtype=dtype, device='cpu')
  parts = scratch[dtype][: sum(sizes)].split(sizes)
  return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def _scalars(t: int, group: Mapping[str, Any]) -> list[Tensor]:
  """Return the numbers of step t as tensors: numbers would recompile."""
  beta1, beta2 = group['betas']
  lr = float(group['lr'])
  values = (
    lr / (1.0 - beta1**t),
    1.0 - lr * group['weight_decay'],
    math.sqrt(1.0 - beta2**t),
    group['eps'],
    beta1,
    beta2,
  )
  return [
    torch.tensor(value, dtype=torch.float64, device='cpu') for value in values
  ]


def _update_each(
  columns: Sequence[Sequence[Tensor]], scalars: Sequence[Tensor]
) -> None:
  """Make one step tensor by tensor: for a compiler, and for any strides."""
  step_size, decay, correction, eps, beta1, beta2 = scalars
  for p, grad, m, v in zip(*columns, strict=True):
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
  return torch.compile(_update_each, dynamic=False)
