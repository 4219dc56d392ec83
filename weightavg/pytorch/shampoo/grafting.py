"""Grafting: a diagonal method gives the length of a block's step.

With f the filtered gradient and G the gradient, the method's direction a is

  sgd      a = f
  adagrad  v <- v + G^2;                 a = f / (sqrt(v) + eps)
  rmsprop  v <- beta v + (1 - beta) G^2; a = f / (sqrt(v) + eps)
  adam     v as rmsprop;                 a = f / (sqrt(v / (1 - beta^t)) + eps)

(Anil et al. 2020, arXiv 2002.09018; Agarwal et al. 2020, arXiv 2002.11803).
"""

import math

import torch

GRAFTINGS = ('adam', 'sgd', 'adagrad', 'rmsprop', None)


def has_second_moment(grafting: str | None) -> bool:
  """Return whether the method has a second moment v, of the block's shape."""
  return grafting in ('adam', 'adagrad', 'rmsprop')


def update_second_moment(
  grafting: str | None,
  moment: torch.Tensor,
  gradient: torch.Tensor,
  beta: float,
) -> None:
  """v <- v + G^2, or its exponential average; in place."""
  if grafting == 'adagrad' or beta == 1:
    moment.addcmul_(gradient, gradient)
  else:
    moment.mul_(beta).addcmul_(gradient, gradient, value=1 - beta)


def grafted_direction(
  grafting: str | None,
  filtered: torch.Tensor,
  moment: torch.Tensor | None,
  beta: float,
  epsilon: float,
  step: int,
) -> torch.Tensor:
  """Return the direction a: a new tensor, or `filtered` itself for SGD.

  Args:
    grafting: one of `GRAFTINGS`; None counts as SGD.
    filtered: f.
    moment: v; None for a method without.
    beta: decay of v in (0, 1]; 1 means a plain sum.
    epsilon: added to the square root.
    step: t, from 1 on.
  """
  if moment is None:
    return filtered
  correction = 1.0
  if grafting == 'adam' and beta < 1:
    correction = math.sqrt(1 - beta**step)
  # f / (sqrt(v) / c + eps) = c f / (sqrt(v) + c eps), with one pass less.
  root = moment.sqrt().add_(correction * epsilon)
  direction = torch.div(filtered, root, out=root)
  return direction.mul_(correction) if correction != 1 else direction
