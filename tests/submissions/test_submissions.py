"""The contract of the submissions in PyTorch."""

import inspect

import pytest
import torch
from submission_runs import (
  ALL,
  AUTO,
  BARE,
  FOLDERS,
  PRIMAL,
  ROOT,
  UNPLANNED,
  Host,
  Workload,
  load,
)
from torch import nn

from weightavg import spec
from weightavg.pytorch import profiling

_COMMON = [
  'workload',
  'current_param_container',
  'current_params_types',
  'model_state',
  'hyperparameters',
]
ARGUMENTS = {
  'init_optimizer_state': [
    'workload',
    'model_params',
    'model_state',
    'hyperparameters',
    'rng',
  ],
  'update_params': [
    *_COMMON,
    'batch',
    'loss_type',
    'optimizer_state',
    'eval_results',
    'global_step',
    'rng',
    'train_state',
  ],
  'prepare_for_eval': [
    *_COMMON,
    'loss_type',
    'optimizer_state',
    'eval_results',
    'global_step',
    'rng',
  ],
  'data_selection': [
    'workload',
    'input_queue',
    'optimizer_state',
    'current_param_container',
    'model_state',
    'hyperparameters',
    'global_step',
    'rng',
  ],
  'get_batch_size': ['workload_name'],
}


def test_the_folder_has_submissions():
  assert BARE & set(FOLDERS)
  assert len(FOLDERS) >= 4


@pytest.mark.parametrize('folder', ALL)
@pytest.mark.parametrize('function', sorted(ARGUMENTS))
def test_functions_have_the_benchmarks_arguments(folder, function):
  submission = load(folder)
  own = {'prepare_for_checkpoint'} if 'auto' in folder else set()
  assert set(submission.__all__) == set(ARGUMENTS) | own
  for name in own:
    found = inspect.signature(getattr(submission, name)).parameters
    assert list(found) == ARGUMENTS['prepare_for_eval']
  parameters = inspect.signature(getattr(submission, function)).parameters
  assert list(parameters) == ARGUMENTS[function]


@pytest.mark.parametrize('folder', ALL)
def test_each_folder_can_be_imported_and_has_a_search_space(folder):
  assert (ROOT / 'submissions' / folder / '__init__.py').exists()
  assert (ROOT / 'tuning_search_spaces' / f'{folder}.json').exists()


@pytest.mark.parametrize('folder', ALL)
def test_unknown_workload_raises_value_error(folder):
  assert load(folder).get_batch_size('imagenet_resnet') == 1024
  with pytest.raises(ValueError, match="Unknown workload 'imagenet_vit_map'"):
    load(folder).get_batch_size('imagenet_vit_map')


@pytest.mark.parametrize('folder', FOLDERS)
def test_prepare_for_eval_changes_the_weights_unless_bare(folder):
  # auto may find the raw weights best; with one candidate it cannot.
  only = {'averaging_candidates': 'ema 0.1'} if folder in AUTO else {}
  host = Host(folder, **only)
  for _ in range(5):
    host.update()
  before = host.weights()
  host.prepare_for_eval()
  assert torch.equal(host.weights(), before) == (folder in BARE)


@pytest.mark.parametrize('folder', ['nadamw_ema', 'shampoo_ema'])
def test_an_optimizers_gathering_is_not_billed_as_a_swap(folder):
  host, recorder = Host(folder), profiling.Recorder()
  host.update()
  with profiling.recording(recorder):
    host.prepare_for_eval()
  gathering = {'Gather optimizer state'} if folder == 'shampoo_ema' else set()
  assert set(recorder.sections) == {'Swap'} | gathering


@pytest.mark.parametrize('folder', FOLDERS)
def test_training_with_evaluations_equals_training_without(folder):
  with_evaluations, without = Host(folder), Host(folder)
  for step in range(8):
    with_evaluations.update()
    without.update()
    if step % 2:
      with_evaluations.prepare_for_eval()
      with_evaluations.prepare_for_eval()
  without.prepare_for_eval()
  assert torch.equal(with_evaluations.weights(), without.weights())


@pytest.mark.parametrize('folder', FOLDERS)
def test_an_evaluation_may_average_the_model_over_the_ranks(folder):
  """Raised an error on AlgoPerf's speech workloads on more than one GPU."""
  averaging, without = Host(folder), Host(folder)
  for _ in range(4):
    for host in (averaging, without):
      host.update()
      host.prepare_for_eval()
    shown = averaging.weights()
    # As the benchmark does: the sum in place of each rank's weights, then the
    # mean by a load. The mean of equal numbers is the number.
    state = averaging.model.state_dict()
    for name, tensor in state.items():
      tensor.mul_(2)
      state[name] = tensor / 2
    averaging.model.load_state_dict(state)
    assert torch.equal(averaging.weights(), shown)
  assert torch.equal(averaging.weights(), without.weights())


@pytest.mark.parametrize('folder', FOLDERS)
def test_self_tuning_needs_no_hyperparameters(folder):
  host = Host(folder)
  state = host.submission.init_optimizer_state(
    host.workload, host.model, None, None, (0, 1)
  )
  assert ('clock' in state) == (folder not in UNPLANNED)
  if folder in UNPLANNED:
    return
  plan = state['clock'].plan
  # Half as much time again as under external tuning.
  assert (plan.longest, plan.seconds) == (500, 5400.0)


@pytest.mark.parametrize('folder', sorted(UNPLANNED))
def test_schedule_free_trains_alike_in_any_budget(folder, monkeypatch):
  results = []
  for step_hint in (20, 500, 50_000):
    monkeypatch.setattr(Workload, 'step_hint', step_hint)
    host = Host(folder, warmup_steps=5)
    for _ in range(30):
      host.update()
    host.prepare_for_eval()
    results.append(host.weights())
  assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize('folder', sorted(PRIMAL))
def test_training_takes_part_at_the_average(folder):
  host, evaluated = Host(folder), Host(folder, averaging_interpolation=0.0)
  for h in (host, evaluated):
    for _ in range(5):
      h.update()
  assert not torch.equal(host.weights(), evaluated.weights())
  # NadamW and Shampoo keep no momentum.
  optimizer = host.state['optimizer']
  assert optimizer.param_groups[0]['betas'][0] == 0.0


class NormalisedHost(Host):
  def make_model(self):
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.mark.parametrize('folder', sorted(PRIMAL | UNPLANNED))
def test_running_statistics_are_refreshed_by_the_training_batch(folder):
  host = NormalisedHost(
    folder,
    averaging_batch_norm='refreshed',
    averaging_refresh_every=3,
    dropout_rate=0.25,
  )
  recorder = profiling.Recorder()
  with profiling.recording(recorder):
    for _ in range(7):
      host.update()
  train = (spec.ForwardPassMode.TRAIN, True, 0.25)
  assert host.workload.calls == [train] * 9
  assert 'Running statistics' in recorder.sections
  host.prepare_for_eval()
  evaluated = host.model[1].running_mean.clone()
  host.update()
  assert not torch.equal(host.model[1].running_mean, evaluated)
