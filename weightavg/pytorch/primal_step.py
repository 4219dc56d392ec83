"""The two lines in y of one step of primal averaging, and what moves them.

  y <- y + before (z - y)    before the step of z: y holds x then
  y <- y + after (z - y)     after it

An optimizer that is a `Leader` moves both in its own pass over memory, if it
can do so for all parameters that it steps (`offer`). `move` does what is left.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from weightavg.pytorch import dtensors, finite, multi_tensor
from weightavg.pytorch.followers import Followers, Leader, is_leader


@dataclasses.dataclass
class PrimalStep:
  """A step that has begun.

  Args:
    before: weight of the first line in y.
    after: weight of the second one; None before the first sample, while x, y
      and z are the same.
    coefficient: c; None where the step is not sampled.
    leaders: the optimizers that move followers.
    followers: handed to them; None if `move` moves all of y.
    look: at the gradients, if there are followers.
    begun: parameters beside the followers, whose first line is made.
  """

  before: float = 0.0
  after: float | None = None
  coefficient: float | None = None
  leaders: Sequence[Leader] = ()
  followers: Followers | None = None
  look: finite.Look | bool | None = None
  begun: set[Tensor] = dataclasses.field(default_factory=set)

  @property
  def is_left_out(self) -> bool:
    """True if the optimizers were told to make no step."""
    return self.followers is not None and self.followers.skip is True

  @property
  def is_made(self) -> bool:
    """True if the optimizers have moved y. May wait for the device."""
    if self.followers is None or not self.followers.moved or self.is_left_out:
      return False
    return not (isinstance(self.look, finite.Look) and self.look.must_skip())

  def offer(
    self,
    optimizers: Sequence[torch.optim.Optimizer],
    parameters: Sequence[Tensor],
    look_at: Callable[[Sequence[Tensor]], finite.Look | bool],
  ) -> None:
    """Let the optimizers move y, if they can do so for all that they step.

    The gradients are looked at, as z is too late: these optimizers make no
    parameter infinite by finite ones before training has diverged.

    Args:
      optimizers: all that step the parameters.
      parameters: of the model.
      look_at: looks for values that are not finite.
    """
    leaders = [o for o in optimizers if is_leader(o)]
    if not leaders or len(leaders) < len(optimizers):
      return
    # They may have been handed those of another averager.
    if any(leader.followers is not None for leader in leaders):
      return
    if not all(leader.stays_finite for leader in leaders):
      return
    stepped = {
      p for o in optimizers for g in o.param_groups for p in g['params']
    }
    own = [p for p in parameters if p.grad is not None]
    if not own or not stepped.issuperset(own):
      return
    gradients = [dtensors.local(p.grad) for p in own]  # type: ignore[arg-type]
    if any(g.layout != torch.strided for g in gradients):
      # They would say so after z has been handed to them.
      names = ', '.join(sorted({type(leader).__name__ for leader in leaders}))
      raise RuntimeError(f'Invalid gradient. {names} takes no sparse tensors.')
    self.look = look_at(gradients)
    skip: Tensor | Literal[True] | None = skip_of(self.look)
    if self.look is False:
      skip = True
    self.followers = Followers({}, self.before, self.after or 0.0, skip)
    self.leaders = leaders
    for leader in leaders:
      leader.lead(self.followers)

  def release(self) -> None:
    """Take the followers from optimizers that have made no step.

    As where GradScaler leaves one out: it would move them in a later step.
    """
    for leader in self.leaders:
      if leader.followers is self.followers:
        leader.lead(None)

  def stepped_by(
    self,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    y: Sequence[Tensor],
    z: Sequence[Tensor],
  ) -> None:
    """Give the followers up if another optimizer than their leaders steps.

    A wrapper may be a `Leader` by its methods and leave the step to the
    optimizer inside, which knows of no followers.

    Args:
      optimizer: begins its step.
      parameters: of the model.
      y: this rank's pieces.
      z: those of z, before the step.

    Raises:
      RuntimeError: a leader has stepped since `offer`: a second step would
        leave its followers behind.
    """
    if self.followers is None:
      return
    for leader in self.leaders:
      if optimizer is leader:
        if leader.followers is not self.followers:
          raise RuntimeError(
            f'{type(leader).__name__} has stepped since before_step(). Call '
            'update() after each step.'
          )
        return
    done = self.followers.moved | self.begun
    left = [i for i, p in enumerate(parameters) if p not in done]
    if left:
      multi_tensor.lerp_(
        [y[i] for i in left], [z[i] for i in left], self.before
      )
    if not done:
      for leader in self.leaders:
        leader.lead(None)
      self.followers, self.leaders, self.look = None, (), None
      return
    # Others have made their step, with their followers.
    self.begun |= {parameters[i] for i in left}
    self.followers.tensors = {
      p: f for p, f in self.followers.tensors.items() if p not in self.begun
    }

  def move(
    self,
    parameters: Sequence[Tensor],
    y: list[Tensor],
    z: list[Tensor],
    result: finite.Look | bool | None,
  ) -> None:
    """Move y by the second line, and by both where an optimizer did not.

    Args:
      parameters: of the model.
      y: this rank's pieces.
      z: those of z, after the step.
      result: of the look; where it was not finite, y holds x afterwards.
    """
    if self.is_left_out:
      return
    if self.followers is not None:
      left = [
        i for i, p in enumerate(parameters) if p not in self.followers.moved
      ]
      late = [i for i in left if parameters[i] not in self.begun]
      if late:
        multi_tensor.lerp_(
          [y[i] for i in late], [z[i] for i in late], self.before
        )
      y, z = [y[i] for i in left], [z[i] for i in left]
    assert self.after is not None
    if not y or result is False:
      return
    skip = skip_of(result)
    if skip is None:
      multi_tensor.lerp_(y, z, self.after)
    else:
      multi_tensor.skipping_lerp_(y, z, self.after, skip)

  def take_back(self, y: Sequence[Tensor], z: Sequence[Tensor]) -> None:
    """Undo the second line in y, which leaves x of the last step.

    Nothing of that x is left where z alone has entered.
    """
    assert self.after is not None
    if self.after < 1.0:
      multi_tensor.lerp_(y, z, self.after / (self.after - 1.0))


def skip_of(result: finite.Look | bool | None) -> Tensor | None:
  """Return the decision that is a number on the device, if it is one."""
  return result.skip if isinstance(result, finite.Look) else None
