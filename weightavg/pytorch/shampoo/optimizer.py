"""Distributed Shampoo as a torch optimizer."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from absl import logging

from weightavg.pytorch.shampoo import (
  distribution,
  parameters,
  root_schedule,
  settings,
)
from weightavg.pytorch.shampoo.blocking import Block
from weightavg.pytorch.shampoo.grafting import (
  grafted_direction,
  update_second_moment,
)
from weightavg.pytorch.shampoo.root_update import RootJob, update_roots
from weightavg.pytorch.shampoo.stacks import BlockStack


class DistributedShampoo(torch.optim.Optimizer):
  """TODO."""

  def __init__(
    self,
    params: Iterable[Any],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    max_preconditioner_dim: int = 1024,
    precondition_frequency: int = 100,
    start_preconditioning_step: int = -1,
    inv_root_override: int | list[int] = 0,
    exponent_multiplier: float = 1.0,
    grafting: str | None = 'adam',
    grafting_beta2: float | None = None,
    grafting_epsilon: float = 1e-8,
    use_nadam: bool = False,
    use_nesterov: bool = False,
    use_decoupled_weight_decay: bool = True,
    preconditioner_dtype: torch.dtype = torch.float32,
    communication_dtype: torch.dtype | None = None,
    communicate_params: bool | None = None,
    num_trainers_per_group: int = -1,
    spread_roots: bool = False,
    diagonal_dim_threshold: int = 1_000_000,
    skip_nonfinite_gradients: bool = False,
    process_group: dist.ProcessGroup | None = None,
  ) -> None:
    defaults = {
      'lr': lr,
      'betas': betas,
      'epsilon': epsilon,
      'momentum': momentum,
      'weight_decay': weight_decay,
      'max_preconditioner_dim': max_preconditioner_dim,
      'precondition_frequency': precondition_frequency,
      'start_preconditioning_step': start_preconditioning_step,
      'inv_root_override': inv_root_override,
      'exponent_multiplier': exponent_multiplier,
      'grafting': grafting,
      'grafting_beta2': grafting_beta2,
      'grafting_epsilon': grafting_epsilon,
      'use_nadam': use_nadam,
      'use_nesterov': use_nesterov,
      'use_decoupled_weight_decay': use_decoupled_weight_decay,
      'spread_roots': spread_roots,
      'diagonal_dim_threshold': diagonal_dim_threshold,
      'step': 0,
    }
    settings.check_dtypes(preconditioner_dtype, communication_dtype)
    groups, names = parameters.named_groups(params)
    for group in groups:
      settings.check_group(defaults | group)
    super().__init__(groups, defaults)
    self.preconditioner_dtype = preconditioner_dtype
    self.skip_nonfinite_gradients = skip_nonfinite_gradients
    self.kept_roots = 0
    self.skipped_steps = 0
    self._infos = parameters.describe(self.param_groups, names)
    self._blocks = [block for info in self._infos for block in info.blocks]
    self._phases = self._root_phases()
    self._ranks = distribution.form_groups(
      process_group, num_trainers_per_group
    )
    frequencies = [g['precondition_frequency'] for g in self.param_groups]
    self._owners = distribution.assign(
      self._blocks, frequencies, self._ranks.size
    )
    self._stacks = self._make_stacks(self._ranks.rank)
    self._exchange: distribution.Exchange | None = None
    self._communicate_params = True
    if self._ranks.size > 1:
      self._start_exchange(communication_dtype, communicate_params)

  def state_bytes(self) -> int:
    """Bytes of this rank's state (not of the buffers for communication)."""
    return sum(
      tensor.numel() * tensor.element_size()
      for stacks in self._stacks
      for stack in stacks
      for tensor in stack.tensors().values()
    )

  @torch.no_grad()
  def step(  # type: ignore[override]
    self, closure: Callable[[], float] | None = None
  ) -> float | None:
    """Update the parameters that have a gradient.

    Args:
      closure: computes the loss again and returns it.

    Raises:
      ValueError: for a sparse or complex gradient.
      FloatingPointError: for a non-finite one, unless those are skipped. In
        both cases neither weights nor state have changed.
    """
    loss = None
    if closure is not None:
      with torch.enable_grad():
        loss = closure()
    parameters.check_gradients(self._infos)
    bad = parameters.nonfinite_gradients(self._infos)
    if bad:
      self._refuse(bad)
      return loss
    present = [i for i in self._infos if i.parameter.grad is not None]
    gradients: dict[Block, torch.Tensor] = {}
    weights: dict[Block, torch.Tensor] = {}
    copies = []
    for info in present:
      # Copies where a view of the merged shape cannot be: channels-last.
      assert info.parameter.grad is not None
      gradients |= info.views(info.parameter.grad.contiguous())
      values = info.parameter.detach()
      contiguous = values.contiguous()
      if contiguous is not values:
        copies.append((values, contiguous))
      weights |= info.views(contiguous)
    for number, group in enumerate(self.param_groups):
      group['step'] += 1
      self._step_group(number, gradients, weights)
    if self._exchange is not None:
      self._share(weights)
    for values, contiguous in copies:
      values.copy_(contiguous)
    return loss

  def _step_group(
    self,
    number: int,
    gradients: Mapping[Block, torch.Tensor],
    weights: Mapping[Block, torch.Tensor],
  ) -> None:
    group, stacks = self.param_groups[number], self._stacks[number]
    due = self._due_blocks(group, stacks)
    step, start = group['step'], settings.start_step(group)
    rooted = {
      block: root_schedule.is_rooted(step, start, self._phases[block])
      for block in gradients
      if block.group == number
    }
    waiting = []
    for stack in stacks:
      for chunk in stack.chunks(rooted):
        gradient = self._gradient(group, stack, chunk, gradients, weights)
        stack.add_factors(chunk, gradient, group['betas'][1])
        if due.isdisjoint(stack.blocks[chunk]):
          # At once, while the chunk is in the cache.
          self._update(group, stack, chunk, gradient, rooted, weights)
        else:
          waiting.append((stack, chunk, gradient))
    self._update_roots(group, stacks, due)
    for stack, chunk, gradient in waiting:
      self._update(group, stack, chunk, gradient, rooted, weights)

  def _update_roots(
    self,
    group: Mapping[str, Any],
    stacks: list[BlockStack],
    due: set[Block],
  ) -> None:
    kept = update_roots(self._root_jobs(group, stacks, due))
    if kept:
      self.kept_roots += len(kept)
      logging.warning(
        'Shampoo kept the last good root at step %d, the new one failed or '
        'is not finite (%d since the start): %s',
        group['step'],
        self.kept_roots,
        ', '.join(kept),
      )

  def _gradient(
    self,
    group: Mapping[str, Any],
    stack: BlockStack,
    chunk: slice,
    gradients: Mapping[Block, torch.Tensor],
    weights: Mapping[Block, torch.Tensor],
  ) -> torch.Tensor:
    gradient = stack.gather(chunk, gradients)
    if group['weight_decay'] and not group['use_decoupled_weight_decay']:
      decay = stack.gather(chunk, weights)
      gradient = gradient.add(decay, alpha=group['weight_decay'])
    return gradient

  def _update(
    self,
    group: Mapping[str, Any],
    stack: BlockStack,
    chunk: slice,
    gradient: torch.Tensor,
    rooted: Mapping[Block, bool],
    weights: Mapping[Block, torch.Tensor],
  ) -> None:
    """Change the weights of a chunk, or put its update into the exchange."""
    preconditioned = not stack.diagonal and rooted[stack.blocks[chunk][0]]
    direction = self._direction(group, stack, chunk, gradient, preconditioned)
    targets = [weights[block] for block in stack.blocks[chunk]]
    if group['weight_decay'] and group['use_decoupled_weight_decay']:
      torch._foreach_add_(
        list(direction.unbind()), targets, alpha=group['weight_decay']
      )
    if stack.velocity is not None:
      mu = group['momentum']
      velocity = stack.velocity[chunk].lerp_(direction, 1 - mu)
      direction = (
        torch.lerp(direction, velocity, mu)
        if group['use_nesterov']
        else velocity
      )
    rate = -float(group['lr'])
    if self._communicate_params:
      torch._foreach_add_(targets, list(direction.unbind()), alpha=rate)
    else:
      assert self._exchange is not None
      sent = [self._exchange.sent[block] for block in stack.blocks[chunk]]
      torch._foreach_copy_(sent, list((direction * rate).unbind()))

  def _direction(
    self,
    group: Mapping[str, Any],
    stack: BlockStack,
    chunk: slice,
    gradient: torch.Tensor,
    preconditioned: bool,
  ) -> torch.Tensor:
    """P of a chunk before weight decay and momentum, a new tensor."""
    step = group['step']
    beta1, beta2 = group['betas']
    beta_g = group['grafting_beta2']
    beta_g = beta2 if beta_g is None else beta_g
    filtered = stack.filter(chunk, gradient, beta1, group['use_nadam'])
    correction = 1 / (1 - beta1**step)
    moment = None
    if stack.second_moment is not None:
      moment = stack.second_moment[chunk]
      update_second_moment(stack.grafting, moment, gradient, beta_g)
    grafted = grafted_direction(
      stack.grafting,
      filtered,
      moment,
      beta_g,
      group['grafting_epsilon'],
      step,
    )
    if not preconditioned:
      if stack.grafting is None:
        return torch.zeros_like(filtered)
      return grafted * correction
    shampoo = stack.precondition(chunk, filtered)
    if stack.grafting is None:
      return shampoo.mul_(correction)
    # S and a both carry the correction c: c S |c a| / (|c S| + 1e-16).
    ratio = _norms(grafted).mul_(correction**2)
    ratio.div_(_norms(shampoo).mul_(correction).add_(1e-16))
    return shampoo.mul_(ratio)

  def _refuse(self, names: list[str]) -> None:
    if not self.skip_nonfinite_gradients:
      raise FloatingPointError(
        f'Invalid gradient of {", ".join(map(repr, names))}. Must be finite, '
        'and so must its norm.'
      )
    self.skipped_steps += 1
    logging.warning(
      'Shampoo skipped a step (%d so far): the gradient of %s is not finite.',
      self.skipped_steps,
      ', '.join(names),
    )

  def _root_phases(self) -> dict[Block, int]:
    phases: dict[Block, int] = {}
    for number, group in enumerate(self.param_groups):
      phases |= root_schedule.phases(
        [block for block in self._blocks if block.group == number],
        group['precondition_frequency'],
        group['spread_roots'],
      )
    return phases

  def _due_blocks(
    self, group: Mapping[str, Any], stacks: list[BlockStack]
  ) -> set[Block]:
    """This rank's blocks whose roots are taken now, gradient or not."""
    return {
      block
      for stack in stacks
      for block in stack.blocks
      if not stack.diagonal
      and root_schedule.is_due(
        group['step'],
        settings.start_step(group),
        group['precondition_frequency'],
        self._phases[block],
        group['spread_roots'],
      )
    }

  def _root_jobs(
    self,
    group: Mapping[str, Any],
    stacks: list[BlockStack],
    due: set[Block],
  ) -> list[RootJob]:
    step, beta2 = group['step'], group['betas'][1]
    correction = 1.0 if beta2 == 1 else 1 - beta2**step
    return [
      RootJob(
        pair[index : index + 1],
        correction,
        settings.exponent(group, len(stack.shape)),
        group['epsilon'],
        f'{self._infos[block.parameter].name}'
        f'[block {block.index}, mode {mode}]',
      )
      for stack in stacks
      for index, block in enumerate(stack.blocks)
      if block in due
      for mode, pair in enumerate(stack.pairs)
    ]

  def _make_stacks(
    self, rank: int, device: torch.device | None = None
  ) -> list[list[BlockStack]]:
    """The stacks of a rank's blocks, by parameter group."""
    members: list[dict[tuple, list[Block]]] = [{} for _ in self.param_groups]
    for block in self._blocks:
      if self._owners[block] == rank:
        parameter = self._infos[block.parameter].parameter
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        place = device or parameter.device
        key = (block.shape, block.diagonal, dtype, place)
        members[block.group].setdefault(key, []).append(block)
    return [
      [
        BlockStack(blocks, group, key[2], self.preconditioner_dtype, key[3])
        for key, blocks in stacks.items()
      ]
      for group, stacks in zip(self.param_groups, members, strict=True)
    ]

  def _start_exchange(
    self,
    dtype: torch.dtype | None,
    communicate_params: bool | None,
  ) -> None:
    tensors = [info.parameter for info in self._infos]
    widest = torch.float32
    for tensor in tensors:
      widest = torch.promote_types(widest, tensor.dtype)
    dtype = dtype or widest
    exact = torch.promote_types(dtype, widest) == dtype
    self._communicate_params = (
      exact if communicate_params is None else communicate_params
    )
    self._exchange = distribution.Exchange(
      self._owners, self._ranks, dtype, tensors[0].device
    )

  def _share(self, weights: Mapping[Block, torch.Tensor]) -> None:
    """Hand round what each rank computed; all ranks end up with equal bits."""
    exchange = self._exchange
    assert exchange is not None
    if self._communicate_params:
      mine = [block for block in exchange.sent if block in weights]
      if mine:
        torch._foreach_copy_(
          [exchange.sent[b] for b in mine], [weights[b] for b in mine]
        )
    exchange.run()
    if not weights:
      return
    received = [exchange.received[block] for block in weights]
    if self._communicate_params:
      torch._foreach_copy_(list(weights.values()), received)
    else:
      torch._foreach_add_(list(weights.values()), received)


def _norms(blocks: torch.Tensor) -> torch.Tensor:
  """Frobenius norm of each block, shaped to multiply the blocks with."""
  dims = tuple(range(1, blocks.dim()))
  return torch.linalg.vector_norm(blocks, dim=dims, keepdim=True)
