"""Observers see a run and leave it as it is; a run from Python is a run."""

import pathlib

import fakes
import pytest

from lab import workloads
from lab.core import logs
from lab.core.errors import InputError
from lab.run import from_python, runner, submissions
from lab.run.distributed import Context
from lab.run.observers import Observer
from lab.workloads import click_dlrm

POINT = fakes.POINTS[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  fakes.register(monkeypatch)
  logs.write_json('space.json', fakes.POINTS)
  return tmp_path


class Recorder(Observer):
  """Notes each event with the step; takes some evaluations over."""

  def __init__(self, takes_over=()):
    self.events = []
    self.takes_over = takes_over

  def at_start(self, run):
    self.events.append(('start', run.state.global_step))

  def before_update(self, run, batch):
    assert set(batch) == {'inputs', 'targets'}
    self.events.append(('before', run.state.global_step))

  def after_step(self, run):
    self.events.append(('after', run.state.global_step))

  def instead_of_evaluation(self, run, rng):
    self.events.append(('due', run.state.global_step))
    return run.state.global_step in self.takes_over

  def at_evaluation(self, run, metrics):
    assert 'validation/loss' in metrics
    self.events.append(('evaluation', run.state.global_step))


def train(folder, *observers, steps=None, seed=0):
  return from_python.train(
    workloads.build_workload(fakes.NAME),
    fakes.write_submission(folder),
    POINT,
    seed,
    str(folder / 'out'),
    observers,
    steps,
  )


def test_events_come_in_the_order_of_the_loop(folder):
  recorder = Recorder(takes_over=[5])
  train(folder, recorder, steps=6)
  expected = [('start', 0)]
  for step in range(6):
    expected += [('before', step), ('after', step + 1)]
    if step + 1 == 5:
      expected += [('due', 5)]
  assert recorder.events == [*expected, ('due', 6), ('evaluation', 6)]


def test_all_observers_are_called_and_one_can_take_an_evaluation_over(folder):
  first, second = Recorder(takes_over=[5, 10, 15, 20]), Recorder()
  state = train(folder, first, second)
  assert first.events == second.events
  assert state.eval_results == []


def test_a_run_with_observers_equals_one_without(folder):
  plain = train(folder)
  observed = train(folder, Recorder())
  assert not fakes.differences(
    plain.model_params.state_dict(), observed.model_params.state_dict()
  )
  assert [m['validation/loss'] for _, m in plain.eval_results] == [
    m['validation/loss'] for _, m in observed.eval_results
  ]


def test_a_run_from_python_is_that_of_the_command_line(folder):
  mine = train(folder, seed=3)
  (theirs, *_) = runner.run(
    fakes.settings(folder, rng_seed=3, run_to_budget=True), Context(), {}
  )
  assert not fakes.differences(
    mine.model_params.state_dict(), theirs.model_params.state_dict()
  )
  assert pathlib.Path('out', 'eval_measurements.csv').exists()
  assert not list(pathlib.Path('out').glob('checkpoint_*'))


def test_an_observer_can_end_a_run_and_measure_a_split(folder):
  class Ends(Observer):
    def after_step(self, run):
      if run.state.global_step == 7:
        run.stop()

    def at_evaluation(self, run, metrics):
      for split in ('train', 'validation', 'test'):
        assert run.measure(split, None) == metrics[f'{split}/loss']

  state = train(folder, Ends())
  assert state.global_step == 7
  # There is an evaluation after the last step.
  assert [step for step, _ in state.eval_results] == [5, 7]


def test_a_local_workload_states_the_batch_size_that_a_submission_lacks(folder):
  submission = submissions.load(fakes.write_submission(folder))
  own = click_dlrm.Workload.batch_size
  assert submission.batch_size('fake', []) == 16
  # A variant has that of its base workload.
  assert submission.batch_size('fake_variant', ['fake']) == 16
  assert submission.batch_size('click_dlrm', [], own) == 128
  with pytest.raises(InputError, match='has no batch size for x: Unknown'):
    submission.batch_size('x', [])
