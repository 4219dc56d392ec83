"""NaN and infinity in inputs, gradients, weights and losses.

Averages stay finite, ranks agree, skipped samples are counted, and the run goes
on.
"""

import json
import math
import pathlib

import fakes
import fault_runs
import gloo
import pytest
import torch
from torch import nn

from lab.run import validation
from lab.run.distributed import Context
from lab.run.observers import Observer
from lab.run.trial import TrialRun
from weightavg import Lawa
from weightavg.pytorch import Averager

VALUES = (math.nan, math.inf, -math.inf)
AT = 9
PYTORCH = [
  name
  for name in fault_runs.submissions()
  if not name.endswith('_jax') and fault_runs.placements(name) != [None]
]


class Queue(fakes.QueueWithSkip):
  """A batch whose first input is not finite."""

  value = math.nan
  key = 'inputs'

  def __next__(self):
    batch = super().__next__()
    if self.position == AT:
      batch[self.key][0] = self.value
    return batch


class Poison(Observer):
  """Writes a value into the weights, or into the gradients of one step."""

  def __init__(self, where, value):
    self.where, self.value = where, value
    self.checked = 0

  def before_update(self, run, batch):
    if run.state.global_step != AT:
      return
    parameter = next(iter(run.state.model_params.parameters()))
    if self.where == 'weights':
      # The raw weights are back only in update_params.
      run.state.optimizer_state['averager'].swap_out()
      parameter.data.view(-1)[0] = self.value
    if self.where == 'gradients':
      parameter.register_hook(lambda g: torch.full_like(g, self.value))

  def at_evaluation(self, run, metrics):
    if run.state.optimizer_state['averager'].swapped:
      self.checked += 1
      for name, tensor in run.state.model_params.state_dict().items():
        assert torch.isfinite(tensor).all(), (name, run.state.global_step)


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
  if where == 'weights' and ('primal' in name or 'schedule_free' in name):
    pytest.skip('the iterate is stored apart from the weights')
  monkeypatch.chdir(fault_runs.ROOT)
  key = {'inputs': 'inputs', 'losses': 'targets'}.get(where)
  queue = fakes.QueueWithSkip
  if key:
    queue = type('Poisoned', (Queue,), {'value': value, 'key': key})
  fakes.register(monkeypatch, 'click_dlrm', queue=queue)
  published = fault_runs.ROOT / 'tuning_search_spaces' / f'{name}.json'
  point = json.loads(published.read_text())[0] | {'averaging_horizon': 0.25}
  if 'auto' in name:
    del point['averaging_horizon']
  (tmp_path / 'space.json').write_text(json.dumps([point]))
  settings = fakes.settings(
    tmp_path,
    workload='click_dlrm',
    submission_path=f'submissions/{name}/submission.py',
    tuning_search_space=str(tmp_path / 'space.json'),
    experiment_dir=str(tmp_path),
  )
  (trial,) = validation.prepare(settings, Context(), 0)
  pathlib.Path(trial.directory).mkdir(parents=True)
  poison = Poison(where, value)
  state = TrialRun(trial, {}, [poison]).run()
  assert state.global_step == 20
  averager = state.optimizer_state['averager']
  # Weights that have lost all sense stay out of the average to the end.
  assert averager.samples + averager.skipped == 20
  assert averager.skipped == 20 - AT + (
    0 if where in ('gradients', 'weights') else 1
  )
  assert f'({averager.skipped} samples skipped so far)' in caplog.text
  assert poison.checked >= (1 if 'auto' in name else 4)
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
