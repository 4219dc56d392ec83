"""Distributed Shampoo as a torch optimizer."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from absl import logging

from weightavg.pytorch.schedules import (
  peak_learning_rates,
  warn_of_other_peaks,
)
from weightavg.pytorch.shampoo import (
  checkpoint,
  distribution,
  parameters,
  root_schedule,
  step_checks,
  validation,
)
from weightavg.pytorch.shampoo.block_state import BlockStack, make_stacks
from weightavg.pytorch.shampoo.blocking import Block
from weightavg.pytorch.shampoo.step import step_group


class DistributedShampoo(torch.optim.Optimizer):
  """Shampoo with grafting, its blocks distributed over all ranks.

  With t the number of calls, for each block G of the gradient (dims merged and
  cut to at most `max_preconditioner_dim`) and each of its modes k:

    A_k <- beta2 A_k + (1 - beta2) G_(k) G_(k)^T      every step
    X_k <- (A_k / (1 - beta2^t) + epsilon I)^(-q)     at T0, then every F steps
    m <- beta1 m + (1 - beta1) G
    f = m / (1 - beta1^t), or its NAdam look-ahead
    S = f multiplied by X_k on every mode,  P = S |a| / |S|
    W <- W - lr (P + weight_decay W)

  where a is the direction of the grafting method (P = a before T0) and
  q = exponent_multiplier / (2 order). `reference.py` spells this out. The
  defaults reproduce AlgoPerf v0.5's winning submission, two flaws included (see
  `step.py`), with these differences: use_nesterov is off, moments of 16-bit
  parameters are float32, roots have preconditioner_dtype, a root that cannot be
  computed keeps its last value instead of raising, and .grad is never written.

  Parameters with a dimension of `diagonal_dim_threshold` or more (embedding
  tables) have no factors and take the step of (N)AdamW. Under DDP every rank
  must step with the same, averaged gradients. With several ranks, call
  `gather_state_for_checkpoint` on all of them before rank 0's `state_dict`.

  Args:
    params: parameters, (name, parameter) pairs, or groups of either. The saved
      state is keyed by name; without names, by position.
    lr: learning rate, >= 0.
    betas: decay of m, in [0, 1), 0 for none; decay of the factors, in (0, 1],
      1 for plain sums.
    epsilon: added to the factors' spectra, > 0.
    momentum: mu in [0, 1), decay of an average of P: h <- mu h + (1 - mu) P.
    weight_decay: >= 0.
    max_preconditioner_dim: largest dimension of a block.
    precondition_frequency: F, steps between roots.
    start_preconditioning_step: T0 >= F; -1 for F.
    inv_root_override: p of the exponent -exponent_multiplier / p, or a list of
      p by order (index 0 is unused); 0 for 2 x order.
    exponent_multiplier: > 0.
    grafting: 'adam', 'adagrad', 'rmsprop', 'sgd', or None for no step before
      T0.
    grafting_beta2: decay of the grafting method's v, in (0, 1]; None for
      betas[1].
    grafting_epsilon: >= 0.
    use_nadam: look ahead with f.
    use_nesterov: look ahead with h: P <- (1 - mu) P + mu h.
    use_decoupled_weight_decay: add the decay to P (True) or to G (False).
    preconditioner_dtype: dtype of factors and roots, torch.float32 or float64.
    communication_dtype: dtype that ranks exchange; None for the parameters'
      widest, at least float32.
    communicate_params: exchange weights (True) or updates (False); None for
      weights unless communication_dtype would round them.
    num_trainers_per_group: number of consecutive ranks that share the work; -1
      for all.
    spread_roots: take each block's roots at T0 + p, T0 + p + F, ... with a
      phase p of its own, so that no step takes them all.
    diagonal_dim_threshold: see above.
    skip_nonfinite_gradients: skip a step with a non-finite gradient, counted in
      `skipped_steps`, instead of raising. All ranks skip or raise if one of
      them has such a gradient.
    process_group: the ranks to use, which step alike and have made equally
      many process groups before; None for all.

  Search spaces (`ShampooConfig`) set all of these but grafting_beta2,
  use_nesterov (on), use_decoupled_weight_decay (on), preconditioner_dtype,
  communicate_params, diagonal_dim_threshold, process_group, grafting=None and
  lists for inv_root_override. Those are for the constructor only.

  Attributes:
    retried_roots: number of this rank's decompositions repeated in float64.
    kept_roots: number of this rank's roots that kept their last value after
      that failed.
    skipped_steps: number of skipped steps.

  Raises:
    ValueError: for a hyperparameter out of range, no parameters, or sharded
      (DTensor), sparse or complex ones.

  Sources: Gupta et al. 2018 (arXiv 1802.09568), Anil et al. 2020 (2002.09018),
  Shi et al. 2023 (2309.06497).

  >>> layer = torch.nn.Linear(4, 3)
  >>> optimizer = DistributedShampoo(layer.named_parameters(), lr=0.01)
  >>> layer(torch.ones(2, 4)).sum().backward()
  >>> optimizer.step()
  """

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
    validation.check_dtypes(preconditioner_dtype, communication_dtype)
    validation.check_bool('skip_nonfinite_gradients', skip_nonfinite_gradients)
    if communicate_params is not None:
      validation.check_bool('communicate_params', communicate_params)
    groups, names = parameters.named_groups(params)
    defaults = validation.with_plain_numbers(defaults)
    # Groups of another optimizer have steps, whose state is not here.
    groups = [validation.with_plain_numbers(g) | {'step': 0} for g in groups]
    for group in groups:
      validation.check_names(group)
      validation.check_group(defaults | group)
      validation.check_start(defaults | group)
    super().__init__(groups, defaults)
    by_torch = set(self.__dict__)
    # torch adds to `defaults` of a copy.
    self._options = tuple(defaults)
    self.preconditioner_dtype = preconditioner_dtype
    self.skip_nonfinite_gradients = skip_nonfinite_gradients
    self.retried_roots = 0
    self.kept_roots = 0
    self.skipped_steps = 0
    # Counts changes of the state: what rank 0 has gathered may be out of date.
    self._version = 0
    self._gathered: int | None = None
    self._gathering: checkpoint.Gathering | None = None
    # On rank 0: the other ranks' blocks as they were loaded, until a step.
    self._loaded: list[BlockStack] = []
    self._names = names
    self._infos = parameters.describe(self.param_groups, names)
    # Every rank's state is laid out by these, whatever becomes of the groups.
    self._built = [
      {key: group[key] for key in ('betas', 'grafting', 'momentum')}
      for group in self.param_groups
    ]
    self._blocks = [block for info in self._infos for block in info.blocks]
    self._root_schedule = root_schedule.RootSchedule(self._blocks)
    self._ranks = distribution.form_groups(
      process_group, num_trainers_per_group
    )
    frequencies = [g['precondition_frequency'] for g in self.param_groups]
    self._owners = distribution.assign(
      self._blocks, frequencies, self._ranks.size
    )
    self._stacks = self._make_stacks(self._ranks.rank)
    self._sizes = step_checks.block_sizes(self.param_groups)
    self._exchange: distribution.Exchange | None = None
    if self._ranks.size > 1:
      self._exchange = distribution.Exchange(
        self._owners,
        self._ranks,
        [info.parameter for info in self._infos],
        communication_dtype,
        communicate_params,
      )
    # What a copy needs beside torch's own.
    self._own = self.__dict__.keys() - by_torch | {'_own'}

  def __getstate__(self) -> dict[str, Any]:
    """Return what copies and pickles hold, together with the parameters.

    Raises:
      RuntimeError: the work is shared by several ranks.
    """
    if self._ranks.everyone is not None:
      raise RuntimeError(
        'Invalid copy. The process groups of several ranks cannot be copied: '
        'build another DistributedShampoo and load the state_dict.'
      )
    # torch copies and pickles only defaults, state and groups.
    own = {name: self.__dict__[name] for name in self._own}
    return super().__getstate__() | own

  def state_bytes(self) -> int:
    """Return the bytes of this rank's state, without exchange buffers."""
    return sum(
      tensor.numel() * tensor.element_size()
      for stack in _flatten(self._stacks)
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
      ValueError: for a sparse or complex gradient, gradients of other
        parameters on another rank, a change of betas[0], momentum or
        grafting that needs an average without state, or one of
        max_preconditioner_dim or diagonal_dim_threshold.
      FloatingPointError: for a non-finite gradient, unless
        skip_nonfinite_gradients is set. Both errors are raised on all ranks and
        leave weights and state unchanged.
    """
    loss = None
    if closure is not None:
      with torch.enable_grad():
        loss = closure()
    is_bad, names = step_checks.nonfinite(
      self.param_groups,
      self._sizes,
      self._stacks,
      self._infos,
      self.preconditioner_dtype,
      self._ranks.everyone,
    )
    if is_bad:
      self._refuse(names)
      return loss
    with torch.autocast(self._infos[0].parameter.device.type, enabled=False):
      self._step_all()
    return loss

  def _step_all(self) -> None:
    """Make the step of all groups, their gradients being sound."""
    self._version += 1
    self._gathering, self._loaded = None, []
    present = [i for i in self._infos if i.parameter.grad is not None]
    gradients: dict[Block, torch.Tensor] = {}
    weights: dict[Block, torch.Tensor] = {}
    copies = []
    for info in present:
      # Channels-last tensors have no view of the merged shape: copy them.
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
      self._exchange.share(weights)
    for values, contiguous in copies:
      values.copy_(contiguous)

  def gather_state_for_checkpoint(self) -> None:
    """Start sending all blocks' state to rank 0; every rank must call this.

    Returns at once; `state_dict` on rank 0 waits. Until the next step rank 0
    holds all other ranks' state in host memory, and each other rank a copy of
    its own until it is sent. A second call before that step does nothing, nor
    does a call between `load_state_dict` and the next step.
    """
    ranks = self._ranks
    if ranks.size == 1 or not ranks.first:
      return
    if self._gathered == self._version:
      return
    if ranks.rank == 0:
      cpu = torch.device('cpu')
      stacks = [
        _flatten(self._make_stacks(rank, cpu)) for rank in range(1, ranks.size)
      ]
    else:
      stacks = [_flatten(self._stacks)]
    self._gathered = self._version
    self._gathering = checkpoint.Gathering(ranks, stacks)

  def state_dict(self) -> dict[str, Any]:
    """Return the whole state as plain data, on the rank that saves.

    With several ranks, that is rank 0 after `gather_state_for_checkpoint` or
    `load_state_dict` on all of them and before the next step. Otherwise the
    state is incomplete: rank 0 logs the reason at once, and `load_state_dict`
    refuses it. Tensors are not copied.
    """
    for hook in self._optimizer_state_dict_pre_hooks.values():
      hook(self)
    state = self._whole_state()
    for change in self._optimizer_state_dict_post_hooks.values():
      changed = change(self, state)
      state = state if changed is None else changed
    return state

  def _whole_state(self) -> dict[str, Any]:
    reason = checkpoint.why_incomplete(
      self._ranks, self._gathered, self._version
    )
    if reason and self._ranks.first and self._ranks.rank == 0:
      logging.warning('The state of Shampoo cannot be resumed. %s', reason)
    states = checkpoint.block_states(_flatten(self._stacks))
    if not reason and self._gathering is not None:
      self._gathering.wait()
      for stacks in self._gathering.stacks:
        states |= checkpoint.block_states(stacks)
    states |= checkpoint.block_states(self._loaded)
    return {
      'format': checkpoint.FORMAT,
      'complete': not reason,
      'reason': reason,
      'param_groups': [
        checkpoint.save_group(group, names)
        for group, names in zip(self.param_groups, self._names, strict=True)
      ],
      'parameters': (
        {}
        if reason
        else checkpoint.save_parameters(
          self._infos, states, self._root_schedule.rooted
        )
      ),
      'retried_roots': self.retried_roots,
      'kept_roots': self.kept_roots,
      'skipped_steps': self.skipped_steps,
    }

  @torch.no_grad()
  def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
    """Restore a state that any number of ranks saved.

    The saved hyperparameters replace the constructor's, the learning rate
    included. A warning names a peak learning rate that changes. With several
    ranks all must load. Until the next step rank 0 holds the other ranks' state
    in host memory: a run that is resumed at its end saves again without a step.

    Raises:
      ValueError: if the state is incomplete or belongs to another model. This
        optimizer is then unchanged.
    """
    # Hooks may change it, and not what was given.
    if isinstance(state_dict, Mapping):
      state_dict = dict(state_dict)
    for hook in self._optimizer_load_state_dict_pre_hooks.values():
      changed = hook(self, state_dict)
      state_dict = state_dict if changed is None else changed
    stacks = _flatten(self._stacks)
    ranks = self._ranks
    saves = ranks.first and ranks.rank == 0
    # Of a rank that does not save they have no memory, and are for the check:
    # all ranks refuse what one of them cannot take.
    device = torch.device('cpu' if saves else 'meta')
    others = [
      stack
      for rank in range(ranks.size)
      if rank != ranks.rank
      for stack in _flatten(self._make_stacks(rank, device))
    ]
    groups = checkpoint.check(
      state_dict,
      self._infos,
      self._options,
      self.param_groups,
      self._names,
      [*stacks, *others],
    )
    peaks = peak_learning_rates(self)
    self._version += 1
    self._gathered, self._gathering = self._version, None
    self._loaded = others if saves else []
    checkpoint.load_blocks(state_dict, self._infos, [*stacks, *self._loaded])
    for group, saved in zip(self.param_groups, groups, strict=True):
      group.update(saved)
    rooted = checkpoint.rooted_blocks(state_dict, self._infos)
    if rooted is None:
      self._root_schedule.expect(self.param_groups)
    else:
      self._root_schedule.rooted = rooted
    # Other sizes that cut the same blocks.
    self._sizes = step_checks.block_sizes(self.param_groups)
    self.retried_roots = state_dict['retried_roots']
    self.kept_roots = state_dict['kept_roots']
    self.skipped_steps = state_dict['skipped_steps']
    warn_of_other_peaks(self, peaks)
    for after in self._optimizer_load_state_dict_post_hooks.values():
      after(self)

  def add_param_group(self, param_group: dict[str, Any]) -> None:
    """Raise RuntimeError: blocks are distributed once, by the constructor."""
    if hasattr(self, '_infos'):
      raise RuntimeError(
        'Invalid call of add_param_group. Pass all parameters to the '
        'constructor, which distributes their blocks over the ranks.'
      )
    super().add_param_group(param_group)

  def _step_group(
    self,
    number: int,
    gradients: Mapping[Block, torch.Tensor],
    weights: Mapping[Block, torch.Tensor],
  ) -> None:
    exchange = self._exchange
    report = step_group(
      self.param_groups[number],
      number,
      self._stacks[number],
      self._root_schedule.due(self.param_groups, number),
      self._root_schedule.rooted,
      [info.name for info in self._infos],
      gradients,
      weights,
      None if exchange is None or exchange.weights else exchange.sent,
    )
    self.retried_roots += len(report.retried)
    self.kept_roots += len(report.kept)
    if report.retried or report.kept:
      logging.warning(
        'Shampoo, step %d: roots decomposed again in float64: %s (%d since '
        'the start); last good roots kept: %s (%d since the start).',
        self.param_groups[number]['step'],
        ', '.join(report.retried) or 'none',
        self.retried_roots,
        ', '.join(report.kept) or 'none',
        self.kept_roots,
      )

  def _refuse(self, names: list[str]) -> None:
    """Skip the step, or raise.

    Args:
      names: of parameters; empty where another rank has the gradients.
    """
    if not self.skip_nonfinite_gradients:
      of = ', '.join(map(repr, names)) or 'a parameter on another rank'
      raise FloatingPointError(
        f'Invalid gradient of {of}. Must be finite, and so must its norm.'
      )
    self.skipped_steps += 1
    logging.warning(
      'Shampoo skipped a step (%d so far): the gradient of %s is not finite.',
      self.skipped_steps,
      ', '.join(names) or 'a parameter on another rank',
    )

  def _make_stacks(
    self, rank: int, device: torch.device | None = None
  ) -> list[list[BlockStack]]:
    """Allocate the state of a rank's blocks, by parameter group."""
    return make_stacks(
      [block for block in self._blocks if self._owners[block] == rank],
      [info.parameter for info in self._infos],
      self._built,
      self.preconditioner_dtype,
      device,
    )


def _flatten(stacks: list[list[BlockStack]]) -> list[BlockStack]:
  return [stack for group in stacks for stack in group]
