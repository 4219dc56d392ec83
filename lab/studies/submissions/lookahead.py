"""NadamW inside Lookahead (Zhang et al. 2019, arXiv 1907.08610).

After every k steps of NadamW on the fast weights x, the slow weights s follow,
and the fast ones start again from them:

  s <- s + alpha (x - s),   x <- s

A point of NadamW may have two keys more: `lookahead_every`, k (5 by default),
and `lookahead_alpha` (0.5).
NadamW's moments stay what they are. Trained are the fast weights; stored is one
copy, the slow weights; evaluated are the slow ones, once there are some.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lab.studies.submissions.points import as_dict
from weightavg.pytorch import train_step
from weightavg.pytorch.build_nadamw import NADAMW
from weightavg.pytorch.models import unwrap
from weightavg.pytorch.train_step import data_selection
from weightavg.schemes.raw import Raw

__all__ = [
  'data_selection',
  'get_batch_size',
  'init_optimizer_state',
  'prepare_for_eval',
  'update_params',
]

EVERY = 5
ALPHA = 0.5

get_batch_size = NADAMW.get_batch_size


class Lookahead:
  """The slow weights of a model.

  Args:
    model: holds the fast weights.
    every: k, steps between two updates of the slow weights, >= 1.
    alpha: in (0, 1].

  >>> model = nn.Linear(1, 1, bias=False)
  >>> _ = model.weight.data.fill_(1.0)
  >>> slow = Lookahead(model, every=2, alpha=0.5)
  >>> for value in (2.0, 5.0):
  ...   _ = model.weight.data.fill_(value)  # in place of optimizer.step()
  ...   slow.update()
  >>> model.weight.item()
  3.0
  """

  def __init__(
    self, model: nn.Module, every: int = EVERY, alpha: float = ALPHA
  ) -> None:
    if every < 1:
      raise ValueError(f'Invalid lookahead_every={every}. Must be in [1, inf).')
    if not 0.0 < alpha <= 1.0:
      raise ValueError(f'Invalid lookahead_alpha={alpha}. Must be in (0, 1].')
    self._model = unwrap(model)
    self.every, self.alpha = every, alpha
    self._step = 0
    self._slow = [p.detach().clone() for p in self._parameters()]
    self._fast: list[Tensor] | None = None

  def _parameters(self) -> list[nn.Parameter]:
    return [p for p in self._model.parameters() if p.requires_grad]

  @torch.no_grad()
  def update(self) -> None:
    """Call after every step of the optimizer."""
    self._step += 1
    if self._step % self.every == 0:
      for slow, fast in zip(self._slow, self._parameters(), strict=True):
        slow.lerp_(fast, self.alpha)
        fast.copy_(slow)

  @torch.no_grad()
  def show(self) -> None:
    """Put the slow weights into the model; a second call changes nothing."""
    if self._fast is None:
      self._fast = [p.detach().clone() for p in self._parameters()]
      for slow, p in zip(self._slow, self._parameters(), strict=True):
        p.copy_(slow)

  @torch.no_grad()
  def hide(self) -> None:
    """Put the fast weights back, if the slow ones are shown."""
    if self._fast is not None:
      for fast, p in zip(self._fast, self._parameters(), strict=True):
        p.copy_(fast)
      self._fast = None

  def state_dict(self) -> dict[str, Any]:
    """The slow weights, the fast ones where they are hidden, and the step."""
    return {'step': self._step, 'slow': self._slow, 'fast': self._fast}

  def load_state_dict(self, state_dict: dict[str, Any]) -> None:
    """Restore what `state_dict` has returned."""
    self._step = state_dict['step']
    self._slow = [tensor.clone() for tensor in state_dict['slow']]
    fast = state_dict['fast']
    self._fast = fast and [tensor.clone() for tensor in fast]


def init_optimizer_state(
  workload, model_params, model_state, hyperparameters, rng
):
  """NadamW, its schedule and the slow weights."""
  del model_state, rng
  point = as_dict(hyperparameters)
  slow = Lookahead(
    model_params,
    every=point.pop('lookahead_every', EVERY),
    alpha=point.pop('lookahead_alpha', ALPHA),
  )
  state = train_step.init_optimizer_state(
    workload, model_params, point, NADAMW, Raw
  )
  return state | {'lookahead': slow}


def update_params(*args, **kwargs):
  """One step of NadamW on the fast weights, then the slow ones follow."""
  slow = kwargs['optimizer_state']['lookahead']
  slow.hide()
  result = train_step.update_params(*args, **kwargs)
  slow.update()
  return result


def prepare_for_eval(*args, **kwargs):
  """Show the slow weights."""
  result = train_step.prepare_for_eval(*args, **kwargs)
  kwargs['optimizer_state']['lookahead'].show()
  return result
