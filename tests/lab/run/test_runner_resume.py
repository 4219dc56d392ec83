"""A run that is stopped anywhere and resumed equals one that never stopped."""

import csv
import json
import os
import pathlib

import fakes
import pytest
import torch

from lab.core import checkpoint_files
from lab.core.errors import InputError
from lab.run import checkpoints
from lab.run.trial import TrialRun

ROOT = pathlib.Path(__file__).parents[3]
SUBMISSIONS = sorted(
  path.parent.name
  for path in ROOT.glob('submissions/*/submission.py')
  if not path.parent.name.endswith('_jax')
)
# Where the run is killed; the last checkpoint before it is at step 5 or 10.
PHASES = {
  'update': ('update', 8),
  'first_update_after_evaluation': ('update', 10),
  'prepare_for_eval': ('prepare', 10),
  'evaluation': ('evaluate', 10),
  'save': ('save', 10),
  'last_evaluation': ('evaluate', 20),
  'last_save': ('last save', 20),
}


class KillSwitch:
  """Ends a run once, at the moment (name, step) that a test sets."""

  def __init__(self, monkeypatch):
    self.moment = None
    self._saved = None
    originals = {
      'update': TrialRun._update,
      'prepare': TrialRun._prepare_for_eval,
    }

    def dying(name):
      def method(run, *args):
        originals[name](run, *args)
        self.on(name, run.state.global_step)

      return method

    monkeypatch.setattr(TrialRun, '_update', dying('update'))
    monkeypatch.setattr(TrialRun, '_prepare_for_eval', dying('prepare'))
    save = checkpoints.save

    def save_or_die(state, directory, **kwargs):
      again = self._saved == (directory, state.global_step)
      self._saved = (directory, state.global_step)
      if self.moment == ('save', state.global_step):
        # Killed halfway through writing.
        pathlib.Path(directory, checkpoints.TEMPORARY).write_bytes(b'half')
        self.on('save', state.global_step)
      if again:
        self.on('last save', state.global_step)
      self.on(os.path.basename(directory), state.global_step)
      return save(state, directory, **kwargs)

    monkeypatch.setattr(checkpoints, 'save', save_or_die)

  def on(self, name, step):
    if (name, step) == self.moment:
      self.moment = None
      raise fakes.Killed


@pytest.fixture
def kill_switch(monkeypatch):
  return KillSwitch(monkeypatch)


@pytest.fixture
def options(request, tmp_path, monkeypatch, kill_switch):
  """Settings of a submission on the fake workload; the fixture's parameter."""
  name = request.param

  def on(self, moment, step):
    kill_switch.on(moment, step)

  if name == 'fake':
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    fakes.register(monkeypatch, on=on)
    points = fakes.POINTS
    path = fakes.write_submission(tmp_path)
    workload = fakes.NAME
  else:
    monkeypatch.chdir(ROOT)
    # Under a name whose batch size the project's submissions know.
    workload = 'click_dlrm'
    fakes.register(monkeypatch, workload, on=on)
    space = ROOT / 'tuning_search_spaces' / f'{name}.json'
    # Dropout, so that a resumed run depends on torch's generator too.
    points = [json.loads(space.read_text())[0] | {'dropout_rate': 0.2}]
    path = f'submissions/{name}/submission.py'
  (tmp_path / 'space.json').write_text(json.dumps(points))
  return {
    'submission_path': path,
    'workload': workload,
    'tuning_search_space': str(tmp_path / 'space.json'),
    'experiment_dir': str(tmp_path / 'runs'),
  }


def trial_of(options, name):
  workload = f'{options["workload"]}_pytorch'
  return pathlib.Path(options['experiment_dir']) / name / workload / 'trial_1'


def without_times(checkpoint):
  kept = ('model_params', 'optimizer_state', 'model_state', 'global_step')
  result = {key: checkpoint[key] for key in kept}
  result['evaluations'] = [
    (step, {k: v for k, v in metrics.items() if '/' in k})
    for step, metrics in checkpoint['eval_results']
  ]
  return result


def load(path):
  return torch.load(path, weights_only=True)


def csv_steps(path, column):
  with open(path, newline='') as file:
    return [
      int(row['global_step']) for row in csv.DictReader(file) if row[column]
    ]


@pytest.mark.parametrize(
  ('options', 'phase'),
  [
    # The moments are the runner's: the quick form has two for a submission.
    pytest.param(
      options,
      phase,
      marks=[pytest.mark.slow]
      * (options != 'fake' and phase not in ('update', 'evaluation')),
    )
    for options in ('fake', *SUBMISSIONS)
    for phase in PHASES
  ],
  indirect=['options'],
)
def test_resumed_run_equals_the_undisturbed_one(
  options, tmp_path, kill_switch, phase
):
  fakes.run(tmp_path, experiment_name='whole', **options)
  kill_switch.moment = PHASES[phase]
  with pytest.raises(fakes.Killed):
    fakes.run(tmp_path, experiment_name='cut', **options)
  fakes.run(tmp_path, experiment_name='cut', resume_last_run=True, **options)
  whole, cut = trial_of(options, 'whole'), trial_of(options, 'cut')
  for step in (5, 10, 15, 20):
    a = load(checkpoint_files.path_of(str(whole), step))
    b = load(checkpoint_files.path_of(str(cut), step))
    assert fakes.differences(without_times(a), without_times(b)) == []
  assert b['preemption_count'] == 1
  evals = csv_steps(cut / 'eval_measurements.csv', 'score')
  assert evals == [5, 10, 15, 20]
  for column in ('loss', 'score'):
    assert csv_steps(cut / 'measurements.csv', column) == (
      csv_steps(whole / 'measurements.csv', column)
    )
  assert not (cut / checkpoints.TEMPORARY).exists()


@pytest.mark.parametrize('options', ['fake'], indirect=True)
def test_a_run_may_be_resumed_many_times(options, tmp_path, kill_switch):
  fakes.run(tmp_path, experiment_name='whole', **options)
  for number, step in enumerate((6, 7, 12, 17)):
    kill_switch.moment = ('update', step)
    with pytest.raises(fakes.Killed):
      fakes.run(
        tmp_path, experiment_name='cut', resume_last_run=number > 0, **options
      )
  fakes.run(tmp_path, experiment_name='cut', resume_last_run=True, **options)
  a = load(trial_of(options, 'whole') / 'checkpoint_20')
  b = load(trial_of(options, 'cut') / 'checkpoint_20')
  assert fakes.differences(without_times(a), without_times(b)) == []
  # Resumed from the same checkpoint (5) twice: it was the first resumption
  # both times, as far as the files know.
  assert b['preemption_count'] == 3


@pytest.mark.parametrize('options', ['fake'], indirect=True)
def test_billed_time_goes_on_after_a_resume(options, tmp_path, kill_switch):
  kill_switch.moment = ('update', 12)
  with pytest.raises(fakes.Killed):
    fakes.run(tmp_path, **options)
  before = load(trial_of(options, 'x') / 'checkpoint_10')
  state = fakes.run(tmp_path, resume_last_run=True, **options)
  scores = [metrics['score'] for _, metrics in state.eval_results]
  assert scores == sorted(scores)
  assert scores[1] == before['eval_results'][1][1]['score']


@pytest.mark.parametrize('options', ['fake'], indirect=True)
def test_a_finished_run_stays_as_it_is(options, tmp_path):
  fakes.run(tmp_path, **options)
  trial = trial_of(options, 'x')
  before = load(trial / 'checkpoint_20')
  rows = (trial / 'measurements.csv').read_text().splitlines()
  fakes.run(tmp_path, resume_last_run=True, **options)
  after = load(trial / 'checkpoint_20')
  assert fakes.differences(without_times(before), without_times(after)) == []
  assert len((trial / 'measurements.csv').read_text().splitlines()) == len(rows)


@pytest.mark.parametrize('options', ['fake'], indirect=True)
def test_resume_goes_on_with_the_trial_that_was_cut(
  options, tmp_path, kill_switch
):
  options['num_tuning_trials'] = 2
  kill_switch.moment = ('trial_2', 15)
  with pytest.raises(fakes.Killed):
    fakes.run(tmp_path, **options)
  # The saved hyperparameters go before a file that has changed since.
  (tmp_path / 'space.json').write_text(json.dumps(fakes.POINTS[::-1]))
  fakes.run(tmp_path, resume_last_run=True, **options)
  second = trial_of(options, 'x').with_name('trial_2')
  assert load(second / 'checkpoint_20')['preemption_count'] == 1
  assert json.loads((second / 'hparams.json').read_text()) == fakes.POINTS[1]


@pytest.mark.parametrize('options', ['fake'], indirect=True)
def test_damaged_hyperparameters_are_said_and_written_again(
  options, tmp_path, kill_switch, caplog
):
  kill_switch.moment = ('trial_1', 15)
  with pytest.raises(fakes.Killed):
    fakes.run(tmp_path, **options)
  path = trial_of(options, 'x') / 'hparams.json'
  path.write_text('{"learning_rate": ')
  fakes.run(tmp_path, resume_last_run=True, **options)
  assert 'hparams.json is damaged: using the search space' in caplog.text
  assert json.loads(path.read_text()) == fakes.POINTS[0]
  # What is wrong in this file is not the search space's fault.
  path.write_text('{"learning_rate": 20, "decay": 0.5}')
  with pytest.raises(InputError, match=r'trial_1/hparams\.json: .*_rate=20'):
    fakes.run(tmp_path, resume_last_run=True, **options)


@pytest.mark.parametrize('options', ['fake'], indirect=True)
def test_resume_without_a_seed_takes_the_one_of_the_run(
  options, tmp_path, kill_switch
):
  fakes.run(tmp_path, experiment_name='whole', rng_seed=5, **options)
  kill_switch.moment = ('update', 12)
  with pytest.raises(fakes.Killed):
    fakes.run(tmp_path, experiment_name='cut', rng_seed=5, **options)
  fakes.run(
    tmp_path,
    experiment_name='cut',
    rng_seed=None,
    resume_last_run=True,
    **options,
  )
  a = load(trial_of(options, 'whole') / 'checkpoint_20')
  b = load(trial_of(options, 'cut') / 'checkpoint_20')
  assert fakes.differences(without_times(a), without_times(b)) == []


@pytest.mark.parametrize('options', ['fake'], indirect=True)
def test_a_queue_without_skip_is_drawn_from(
  options, tmp_path, kill_switch, monkeypatch
):
  fakes.run(tmp_path, experiment_name='whole', **options)
  fakes.register(
    monkeypatch, queue=fakes.Queue, on=lambda self, *m: kill_switch.on(*m)
  )
  kill_switch.moment = ('update', 12)
  with pytest.raises(fakes.Killed):
    fakes.run(tmp_path, experiment_name='cut', **options)
  fakes.run(tmp_path, experiment_name='cut', resume_last_run=True, **options)
  a = load(trial_of(options, 'whole') / 'checkpoint_20')
  b = load(trial_of(options, 'cut') / 'checkpoint_20')
  assert fakes.differences(without_times(a), without_times(b)) == []


def test_an_ended_run_does_not_go_on_and_says_so(tmp_path, monkeypatch, caplog):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  fakes.register(monkeypatch)
  (tmp_path / 'space.json').write_text(json.dumps(fakes.POINTS))
  fakes.run(tmp_path, max_global_steps=4)
  for steps, is_said in ((4, False), (12, True)):
    caplog.clear()
    state = fakes.run(tmp_path, max_global_steps=steps, resume_last_run=True)
    assert state.global_step == 4
    said = [text for text in caplog.messages if 'Nothing is trained' in text]
    assert len(said) == is_said
  assert 'ended at step 4 and does not go on to step 12' in said[0]
