"""Choices among the averages of a run of `nadamw_auto`, by several rules."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from lab.core import curves
from lab.run.trial import TrialRun
from lab.studies.parts.training import Follower
from lab.workloads import build_workload
from weightavg.pytorch import choosing_step, selection
from weightavg.pytorch.choice import RAW
from weightavg.pytorch.probes import (
  Batch,
  first_examples,
  leaves,
  mapped,
  num_examples,
)

# Salt of the stream of further batches: no run trains on it.
FURTHER_SALT = 20230906
# Name of the submission's own choice.
AUTO = 'auto'


def joined(batches: Sequence[Batch]) -> Batch:
  """One batch with the rows of several."""
  columns = zip(*(leaves(batch) for batch in batches), strict=True)
  whole = iter([torch.cat(parts) for parts in columns])
  return mapped(lambda _: next(whole), batches[0])


class Choosers(Follower):
  """Evaluates every candidate of a run, and notes which one each rule chooses.

  The curve of a rule has the values of the candidates that it chose. The curve
  of `auto`, the submission's own rule, equals that of the submission under the
  runner bit for bit. A
  choice is [step, index into the candidates], -1 where no candidate has a
  finite loss and the raw weights are shown.

  Args:
    rules: name to `probe` and `memory` of a further rule. Probes are 'own', the
      submission's; 'batch', the whole batch that it was cut from; 'four
      batches', that batch and three that are never trained on; 'trained on',
      the last batch of the training; 'fresh', as many examples as the own probe
      has that are never trained on.
    evaluated_from: fraction of the budget before which no curve begins; choices
      are made from the start.
    to_target: end a curve where it reaches the target.
    to_the_end: train on when all curves have ended.
  """

  rule: ClassVar = (
    'weightavg.sampling',
    'weightavg.schemes',
    'weightavg.pytorch.choosing_step',
    'weightavg.pytorch.probes',
    'weightavg.pytorch.selection',
  )

  def __init__(
    self,
    rules: Mapping[str, Mapping[str, Any]],
    evaluated_from: float,
    to_target: bool,
    to_the_end: bool,
  ) -> None:
    self._rules = rules
    self._selectors = {
      name: selection.Selector(rule['memory']) for name, rule in rules.items()
    }
    self._selected = dict.fromkeys(rules, RAW)
    self._evaluated_from = evaluated_from
    self._to_target, self._to_the_end = to_target, to_the_end
    self._arrived: set[str] = set()
    self._batch: Batch | None = None
    self._trained_on: Batch | None = None
    self.curves: dict[str, list[list[float]]] = {}
    self.choices: dict[str, list[list[int]]] = {}

  def at_start(self, run: TrialRun) -> None:
    """Open the stream of further batches: the same data without end."""
    trial = run.trial
    self._further = build_workload(trial.workload.name)._build_input_queue(
      (trial.rng_seed, FURTHER_SALT), 'train', '', trial.batch_size
    )

  def before_update(self, run: TrialRun, batch: Any) -> None:
    """Hold on to the batches that pass through the submission."""
    self._batch = batch.get(choosing_step.PROBE, self._batch)
    self._trained_on = {
      key: value for key, value in batch.items() if key != choosing_step.PROBE
    }

  def _probe(self, kind: str, run: TrialRun) -> Batch:
    assert self._batch is not None
    assert self._trained_on is not None
    if kind == 'batch':
      return self._batch
    if kind == 'four batches':
      return joined([self._batch, *(next(self._further) for _ in range(3))])
    if kind == 'trained on':
      return self._trained_on
    own = run.state.optimizer_state['probe'].batch
    return first_examples(next(self._further), num_examples(own))

  def _choose(self, run: TrialRun, rng: Any) -> None:
    """Apply each rule to the losses on its probe, from its last choice."""
    state = run.state
    own = state.optimizer_state['selector'].latest
    if own is None:
      return
    comparisons = {'own': own}
    for name, rule in self._rules.items():
      kind = rule['probe']
      if kind not in comparisons:
        comparisons[kind] = choosing_step.compare_candidates(
          run.trial.workload,
          state.model_params,
          state.model_state,
          state.optimizer_state['averager'],
          self._probe(kind, run),
          rng,
        )
      step = state.global_step
      chosen = self._selectors[name].choose(
        comparisons[kind],
        self._selected[name],
        step,
        # A probe for each evaluation.
        probe=step,
      )
      self._selected[name] = RAW if chosen is None else chosen

  def instead_of_evaluation(self, run: TrialRun, rng: Any) -> bool:
    """Choose by each rule, then extend the curves."""
    state = run.state
    averager = state.optimizer_state['averager']
    own = averager.choice.selected
    averager.swap_out()
    self._choose(run, rng)
    chosen = {AUTO: own, **self._selected}
    for name, which in chosen.items():
      self.choices.setdefault(name, []).append([state.global_step, which])
    if state.global_step >= self._evaluated_from * run.trial.budget:
      shown = {name: i for i, name in enumerate(averager.choice.names)} | chosen
      self._follow(run, averager, shown, rng)
    averager.select(own)
    return True

  def _follow(
    self, run: TrialRun, averager: Any, shown: Mapping[str, int], rng: Any
  ) -> None:
    """Extend the curves that have not ended."""
    state, workload = run.state, run.trial.workload
    values: dict[int, float] = {}
    for name, which in shown.items():
      if name in self._arrived:
        continue
      if which not in values:
        averager.select(which)
        with averager.evaluating():
          values[which] = run.measure('validation', rng)
      billed = state.train_state['accumulated_submission_time']
      point = [state.global_step, billed, values[which]]
      self.curves.setdefault(name, []).append(point)
      if self._to_target and curves.reaches(
        values[which],
        workload.validation_target_value,
        workload.higher_is_better,
      ):
        self._arrived.add(name)
    if len(self._arrived) == len(shown) and not self._to_the_end:
      run.stop()

  def findings(self) -> dict[str, Any]:
    """Curves and choices by name."""
    return {'curves': self.curves, 'choices': self.choices}
