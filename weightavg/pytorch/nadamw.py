"""NadamW: Adam with decoupled weight decay and a Nesterov look-ahead."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightavg.pytorch import dtensors, multi_tensor
from weightavg.pytorch.followers import Followers
from weightavg.pytorch.nadamw_kernels import Kernel
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
  With b1 = 0, n is the gradient and no m is kept.

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
    self._followers: Followers | None = None
    # States of the parameters that the last step with followers has counted.
    self._led: list[dict[str, Any]] = []
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
    self.__dict__.setdefault('_scratch', {})
    self.__dict__.setdefault('_followers', None)
    self.__dict__.setdefault('_led', [])

  def lead(self, followers: Followers | None) -> None:
    """Move other tensors along with the parameters in the next step.

    Args:
      followers: of parameters of this optimizer; None for none.
    """
    self._followers = followers
    # A step that GradScaler leaves out has counted nothing.
    self._led = []

  @property
  def followers(self) -> Followers | None:
    """Return the followers that the next step moves."""
    return self._followers

  @property
  def stays_finite(self) -> bool:
    """True unless an eps of 0 may divide a gradient of 0 by 0."""
    return all(group['eps'] > 0.0 for group in self.param_groups)

  def uncount(self) -> None:
    """Take the last step with followers out of the counts: it was left out.

    A state that was loaded since is another one, which did not count it.
    """
    for state in self._led:
      state['step'] -= 1
    self._led = []

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
    if any(
      p.grad is not None and p.grad.is_sparse
      for group in self.param_groups
      for p in group['params']
    ):
      raise RuntimeError('Invalid gradient. NadamW takes no sparse tensors.')
    followed = self._followers
    left_out = followed.tensors if followed and followed.skip is True else {}
    self._led = []
    for group in self.param_groups:
      # A parameter that missed a gradient has a smaller t than the others.
      by_step: dict[int, list[Tensor]] = {}
      for p in group['params']:
        if p.grad is not None and p not in left_out:
          by_step.setdefault(self._count_step(p), []).append(p)
      followers, others = _divide(by_step, self._followers)
      for t, params in followers:
        self._update(params, t, group, self._followers)
        self._led += [self.state[p] for p in params]
      for t, params in others:
        self._update(params, t, group, None)
    self._followers = None
    return loss

  def _count_step(self, p: Tensor) -> int:
    state = self.state[p]
    state['step'] = state.get('step', 0) + 1
    return state['step']

  def _update(
    self,
    params: list[Tensor],
    t: int,
    group: dict[str, Any],
    followers: Followers | None,
  ) -> None:
    """Step parameters that are alike in t, and what follows them."""
    kept = _MOMENTS if group['betas'][0] > 0.0 else _MOMENTS[1:]
    dense: list[list[Tensor]] = [[] for _ in range(2 + len(kept))]
    if followers is not None:
      dense.append([])
      followers.moved.update(params)
    kernel = Kernel(t, group, followers, self._scratch)
    for p in params:
      state = self.state[p]
      for name in kept:
        if name not in state:  # the first step, or b1 was 0 until now
          state[name] = _zeros_like(p)
      tensors = _local_tensors(p, *(state[name] for name in kept))
      if followers is not None:
        tensors.append(followers.tensors[p])
      ordered = _in_memory_order(tensors)
      if ordered is None:
        kernel.update_each([[x] for x in tensors])
        continue
      for column, tensor in zip(dense, ordered, strict=True):
        column.append(tensor)
    for columns in multi_tensor.by_device_and_dtype(*dense):
      if self._compiled and self._update_compiled(kernel, columns):
        continue
      for piece in multi_tensor.pieces(*columns):
        kernel.update_by_adamw(piece)

  def _update_compiled(
    self, kernel: Kernel, columns: list[list[Tensor]]
  ) -> bool:
    """Try the compiled kernel; False if it failed, with nothing changed."""
    try:
      kernel.update_compiled(columns)
    # A compiler raises many kinds of errors, all before the kernel runs.
    except Exception as error:
      self._compiled = False
      warnings.warn(
        f"NadamW(fused='compile') runs uncompiled: {type(error).__name__}.",
        stacklevel=6,  # above torch's two wrappers of `step`
      )
      return False
    return True

  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Restore a state as torch's optimizers do, with moments as they were.

    The saved hyperparameters replace the constructor's, the learning rate
    included. A warning names a peak learning rate that changes. Moments of a
    narrower dtype than this optimizer's own become as wide as those.

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
        saved = loaded['state'].get(key, {})
        for name in _MOMENTS:
          if name in saved:
            # Narrower ones, as of another dtype's model, would round p.
            wide = torch.promote_types(saved[name].dtype, _moment_dtype(p))
            self.state[p][name] = saved[name].to(p.device, wide, copy=True)
        if 'step' in saved:  # a tensor in the states of torch.optim
          self.state[p]['step'] = int(saved['step'])

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


def _zeros_like(p: Tensor) -> Tensor:
  return torch.zeros_like(p, dtype=_moment_dtype(p))


def _moment_dtype(p: Tensor) -> torch.dtype:
  return torch.promote_types(p.dtype, torch.float32)


def _divide(
  by_step: Mapping[int, list[Tensor]], followers: Followers | None
) -> tuple[list[tuple[int, list[Tensor]]], list[tuple[int, list[Tensor]]]]:
  """Return (t, parameters) of those with a follower, then of the others."""
  if followers is None:
    return [], list(by_step.items())
  parts: tuple[list, list] = ([], [])
  for t, params in by_step.items():
    for part, leads in zip(parts, (True, False), strict=True):
      found = [p for p in params if (p in followers.tensors) == leads]
      if found:
        part.append((t, found))
  return parts


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
