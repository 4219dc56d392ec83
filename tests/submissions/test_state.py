"""States of the submissions: plain, checkpointable, refused in another run."""

import pytest
import torch
from submission_runs import FOLDERS, Host


@pytest.mark.parametrize('folder', FOLDERS)
def test_every_value_of_the_state_is_checkpointable(folder, tmp_path):
  host = Host(folder)
  keys = set(host.state)
  for _ in range(3):
    host.update()
  host.prepare_for_eval()
  assert set(host.state) == keys
  saved = {k: v.state_dict() for k, v in host.state.items()}
  torch.save(saved, tmp_path / 'state')
  loaded = torch.load(tmp_path / 'state', weights_only=True)
  fresh = Host(folder)
  fresh.model.load_state_dict(host.model.state_dict())
  for key, value in fresh.state.items():
    value.load_state_dict(loaded[key])
  fresh.step, fresh.model_state = host.step, host.model_state
  for h in (host, fresh):
    h.update(train_state={})
    h.prepare_for_eval()
  assert torch.equal(fresh.weights(), host.weights())
  assert fresh.model_state == host.model_state == 4


def test_a_state_of_another_budget_is_refused():
  state = Host('nadamw').state['run'].state_dict()
  with pytest.raises(ValueError, match='budget=500, this submission has'):
    Host('nadamw', step_hint_factor=0.5).state['run'].load_state_dict(state)


@pytest.mark.parametrize(
  ('key', 'value'),
  [('learning_rate', 0.5), ('warmup_factor', 0.5), ('label_smoothing', 0.5)],
)
@pytest.mark.parametrize('folder', ['nadamw', 'shampoo'])
def test_a_state_of_another_point_is_refused(folder, key, value):
  state = Host(folder).state['run'].state_dict()
  with pytest.raises(ValueError, match=f'{key}=0.5'):
    Host(folder, **{key: value}).state['run'].load_state_dict(state)
  Host(folder).state['run'].load_state_dict(state)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('grafting', 'rmsprop'),
    ('use_nadam', False),
    ('precondition_frequency', 7),
    ('schedule', 'constant'),
  ],
)
def test_a_state_of_another_choice_is_refused(key, value):
  state = Host('shampoo').state['run'].state_dict()
  other = Host('shampoo', **{key: value}).state['run']
  with pytest.raises(ValueError, match=f'this submission has {key}={value!r}'):
    other.load_state_dict(state)
  del state[key]  # as in states of earlier versions
  other.load_state_dict(state)


@pytest.mark.parametrize(
  ('key', 'value'),
  [('skip_nonfinite_gradients', True), ('num_trainers_per_group', 1)],
)
def test_how_the_work_is_done_may_change(key, value):
  state = Host('shampoo').state['run'].state_dict()
  Host('shampoo', **{key: value}).state['run'].load_state_dict(state)


def test_a_state_of_another_optimizer_is_refused():
  state = Host('nadamw').state['run'].state_dict()
  with pytest.raises(ValueError, match="optimizer='nadamw', this submission"):
    Host('shampoo').state['run'].load_state_dict(state)
