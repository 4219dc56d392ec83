"""NaN and infinity in inputs, gradients, weights and losses.

Averages stay finite, ranks agree, what is left out is counted, and the run goes
on or ends with a clear error.

What one bad batch does depends on the optimizer:

- NadamW takes any gradient. Its moments, and so the weights, are lost from then
  on: all samples that are due later are skipped.
- NadamW that trains at an average is told to leave the step out. One sample is
  skipped, and nothing is lost.
- Shampoo raises, or leaves the step out if `skip_nonfinite_gradients` is set.
  The weights stay finite, and each step is a sample of them; but the running
  statistics of a bad input are lost, unless training takes place at the
  average.
"""

import json
import math
import pathlib

import fakes
import fault_runs
import gloo
import jax_support
import numpy as np
import pytest
import torch
from torch import nn

from lab.run import validation
from lab.run.distributed import Context
from lab.run.observers import Observer
from lab.run.trial import TrialRun
from weightavg import Lawa
from weightavg.pytorch import Averager

if jax_support.HAS_JAX:
  import fault_jax

# Keys of a batch.
BATCH = {'inputs': 'inputs', 'losses': 'targets'}
VALUES = (math.nan, math.inf, -math.inf)
STEPS, BAD = 20, 10
AVERAGING = [
  name
  for name in fault_runs.submissions()
  if fault_runs.placements(name) != [None]
]
PYTORCH = [name for name in AVERAGING if not name.endswith('_jax')]
JAX = [name for name in AVERAGING if name.endswith('_jax')]


class Poison(Observer):
  """Writes a value into the batch, gradients or weights of one step."""

  def __init__(self, where, value):
    self.where, self.value = where, value
    self.checked = 0
    self.hook = None

  def before_update(self, run, batch):
    if self.hook is not None:
      self.hook.remove()
    if run.state.global_step + 1 != BAD:
      return
    if self.where in BATCH:
      batch[BATCH[self.where]][0] = self.value
    parameter = next(iter(run.state.model_params.parameters()))
    if self.where == 'weights':
      # The raw weights are back only in update_params.
      run.state.optimizer_state['averager'].swap_out()
      parameter.data.view(-1)[0] = self.value
    if self.where == 'gradients':
      self.hook = parameter.register_hook(
        lambda g: torch.full_like(g, self.value)
      )

  def at_evaluation(self, run, metrics):
    if run.state.optimizer_state['averager'].swapped:
      self.checked += 1
      for name, tensor in run.state.model_params.state_dict().items():
        assert torch.isfinite(tensor).all(), (name, run.state.global_step)


def trains_at_the_average(name):
  return name.removesuffix('_jax').endswith(('primal', 'schedule_free'))


def point_of(name, **changes):
  """First published point, with an average over several of the 20 steps."""
  published = fault_runs.ROOT / 'tuning_search_spaces' / f'{name}.json'
  point = json.loads(published.read_text())[0]
  if 'averaging_horizon' in point:
    changes = {'averaging_horizon': 0.25} | changes
  return point | changes


def start(name, where, value, folder, monkeypatch, observer=Poison, **changes):
  """A run that meets the value, and its observer."""
  monkeypatch.chdir(fault_runs.ROOT)
  is_jax = name.endswith('_jax')
  if is_jax:
    monkeypatch.setattr(
      fault_jax.twins, 'build_workload', lambda name: fault_jax.Workload()
    )
  else:
    fakes.register(monkeypatch, 'click_dlrm')
  space = folder / 'space.json'
  space.write_text(json.dumps([point_of(name, **changes)]))
  settings = fakes.settings(
    folder,
    workload='stdlib_lm' if is_jax else 'click_dlrm',
    framework='jax' if is_jax else 'pytorch',
    submission_path=f'submissions/{name}/submission.py',
    tuning_search_space=str(space),
    experiment_dir=str(folder),
  )
  (trial,) = validation.prepare(settings, Context(), 0)
  pathlib.Path(trial.directory).mkdir(parents=True)
  poison = observer(where, value)
  return TrialRun(trial, {}, [poison]), poison


def due_from(averager, step):
  """Number of samples that are due from a step to the end."""
  return sum(map(averager.sampling.is_sampled, range(step, STEPS + 1)))


def check_counts(averager, skipped, text):
  assert averager.skipped == skipped
  assert averager.samples == due_from(averager, 1) - skipped
  assert (f'({skipped} samples skipped so far)' in text) == (skipped > 0)


@pytest.mark.parametrize('value', VALUES)
@pytest.mark.parametrize('where', ['inputs', 'losses', 'gradients', 'weights'])
@pytest.mark.parametrize(
  'name',
  [
    'nadamw_lawa',
    *(pytest.param(n, marks=pytest.mark.faults) for n in PYTORCH),
  ],
)
def test_what_is_evaluated_stays_finite(
  name, where, value, tmp_path, monkeypatch, tally, caplog
):
  if where == 'weights' and trains_at_the_average(name):
    pytest.skip('the iterate is stored apart from the weights')
  run, poison = start(name, where, value, tmp_path, monkeypatch)
  if name.startswith('shampoo'):
    with pytest.raises(FloatingPointError, match=r'^Invalid gradient'):
      run.run()
    assert run.state.global_step == BAD - 1
    tally.add('not finite', where)
    return
  state = run.run()
  assert state.global_step == STEPS
  averager = state.optimizer_state['averager']
  is_kept = trains_at_the_average(name)
  skipped = 1 if is_kept else due_from(averager, BAD)
  check_counts(averager, skipped, caplog.text)
  averager.swap_out()
  assert is_kept == all(
    torch.isfinite(tensor).all()
    for tensor in state.model_params.state_dict().values()
  )
  # Evaluated at 5, 10, 15 and 20; auto may have chosen the raw weights.
  assert poison.checked >= (1 if 'auto' in name else 4)
  tally.add('not finite', where)


@pytest.mark.parametrize('value', VALUES)
@pytest.mark.parametrize('where', ['inputs', 'losses', 'gradients'])
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(n, marks=pytest.mark.faults)
    for n in PYTORCH
    if n.startswith('shampoo')
  ],
)
def test_shampoo_leaves_a_step_out_if_asked(
  name, where, value, tmp_path, monkeypatch, tally, caplog
):
  run, poison = start(
    name, where, value, tmp_path, monkeypatch, skip_nonfinite_gradients=True
  )
  state = run.run()
  assert state.global_step == STEPS
  assert state.optimizer_state['optimizer'].skipped_steps == 1
  averager = state.optimizer_state['averager']
  skipped = 0
  if where == 'inputs':
    # The layer's running statistics are part of a sample.
    skipped = 1 if trains_at_the_average(name) else due_from(averager, BAD)
  check_counts(averager, skipped, caplog.text)
  averager.swap_out()
  for parameter in state.model_params.parameters():
    assert torch.isfinite(parameter).all()
  assert poison.checked >= (1 if 'auto' in name else 4)
  tally.add('not finite', where)


class PoisonInJax(Observer):
  """Writes a value into the batch of one step."""

  def __init__(self, where, value):
    self.where, self.value = where, value
    self.checked = 0

  def before_update(self, run, batch):
    if run.state.global_step + 1 == BAD:
      batch[BATCH[self.where]][0] = self.value

  def at_evaluation(self, run, metrics):
    self.checked += 1
    shown = run.state.model_params, run.state.model_state
    for leaf in fault_jax.leaves(shown):
      assert np.isfinite(leaf).all(), run.state.global_step


@pytest.mark.parametrize('value', VALUES)
@pytest.mark.parametrize('where', BATCH)
@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=pytest.mark.faults) for n in JAX]
)
def test_what_is_evaluated_stays_finite_in_jax(
  name, where, value, tmp_path, monkeypatch, tally, caplog
):
  """The decisions are those of PyTorch."""
  run, poison = start(
    name, where, value, tmp_path, monkeypatch, observer=PoisonInJax
  )
  state = run.run()
  assert state.global_step == STEPS
  train = state.optimizer_state[0].train
  is_kept = trains_at_the_average(name)
  counts = train.optimizer if is_kept else train.averages
  # Each step is a sample, of all averages alike.
  skipped = 1 if is_kept else STEPS + 1 - BAD
  assert int(counts.num_skipped) == skipped
  assert f'({skipped} samples skipped so far)' in caplog.text
  raw = train.params, train.model_state
  assert is_kept == all(np.isfinite(x).all() for x in fault_jax.leaves(raw))
  assert poison.checked >= 4
  tally.add('not finite', where)


def _ranks_decide(rank, folder, placement, scheme, on_ranks):
  torch.manual_seed(0)
  model = nn.Linear(4, 3)
  averager = Averager(
    model, scheme, every=1, placement=placement, collective=True
  )
  for step in range(1, 7):
    with torch.no_grad():
      for parameter in model.parameters():
        parameter.copy_(torch.full_like(parameter, float(step)))
      if step == 3 and rank in on_ranks:
        model.weight[0, 0] = math.nan
    averager.update()
  averager.swap_in()
  found = {
    'samples': averager.samples,
    'skipped': averager.skipped,
    'weights': [p.detach().clone() for p in model.parameters()],
  }
  torch.save(found, folder / f'{rank}.pt')


@pytest.mark.parametrize(
  ('placement', 'on_ranks'),
  [
    pytest.param('sharded', (0, 1), marks=pytest.mark.faults),
    pytest.param('device', (0, 1), marks=pytest.mark.faults),
    pytest.param('device', (1,), marks=pytest.mark.faults),
    pytest.param('sharded', (1,), marks=pytest.mark.faults),
  ],
)
def test_ranks_take_the_same_decision(placement, on_ranks, tmp_path):
  gloo.run_on_ranks(
    2, _ranks_decide, tmp_path, placement, Lawa(window=3), on_ranks
  )
  a, b = (
    torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in (0, 1)
  )
  assert fakes.differences(a, b) == []
  assert a['skipped'] == 1
  assert all(torch.isfinite(t).all() for t in a['weights'])
