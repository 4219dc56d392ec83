"""Averagers that are built without a search space."""

import pytest
import torch
from torch import nn

from weightavg import Auto, AveragingConfig, Ema, Lawa, Polynomial
from weightavg.pytorch import Averager
from weightavg.sampling import Sampling


def model():
  return nn.Linear(1, 1, bias=False)


@pytest.mark.parametrize(
  ('scheme', 'options', 'sampling', 'resolved'),
  [
    (Ema(0.999), {}, Sampling(1), Ema(0.999)),
    (Lawa(window=5), {'every': 100}, Sampling(100), Lawa(5)),
    (Lawa(window=5), {'total_steps': 1000}, Sampling(2), Lawa(5)),
    (Ema(horizon=0.01), {'total_steps': 10_000}, Sampling(20), Ema(0.8)),
    (
      Ema(horizon=0.01),
      {'total_steps': 10_000, 'every': 1},
      Sampling(1),
      Ema(0.99),
    ),
    (Polynomial(power=4), {}, Sampling(1), Polynomial(4)),
    (Ema(0.9), {'start': 7, 'every': 2}, Sampling(2, 7), Ema(0.9)),
  ],
)
def test_the_cadence_and_the_length(scheme, options, sampling, resolved):
  averager = Averager(model(), scheme, **options)
  assert (averager.sampling, averager.scheme) == (sampling, resolved)


@pytest.mark.parametrize(
  ('scheme', 'options', 'message'),
  [
    (Ema(), {}, r'Missing total_steps\. Ema\(\) has a horizon'),
    (Ema(horizon=0.1), {}, r'Missing total_steps\. Ema\(horizon=0\.1\) has'),
    (Lawa(window=5), {}, r'Missing every\. Lawa\(window=5\) averages'),
    (Auto(), {}, r'Missing total_steps'),
    (Ema(0.9), {'every': 0}, r'Invalid every=0\. Must be an integer in \[1,'),
    (Ema(0.9), {'every': True}, r'Invalid every=True\. Must be an integer in'),
    (Ema(0.9), {'start': True}, r'Invalid start=True\. Must be an integer in'),
    (Ema(0.9), {'start': -1}, r'Invalid start=-1\. Must be an integer in \[0,'),
    (Ema(0.9), {'total_steps': 1.5}, r'Invalid total_steps=1\.5\. Must be an'),
    (Ema(0.9), {'swap': 'move'}, r"Invalid swap='move'\. Must be one of ex"),
    (Ema(0.9), {'placement': 'gpu'}, r"Invalid placement='gpu'\. Must be one"),
    (Ema(0.9), {'batch_norm': ''}, r"Invalid batch_norm=''\. Must be one of"),
    (0.999, {}, r'Invalid scheme=0\.999\. Must be a scheme such as Ema'),
    (AveragingConfig(), {}, r'Averager\.from_config takes a configuration'),
  ],
)
def test_bad_arguments_are_named(scheme, options, message):
  with pytest.raises(ValueError, match=message):
    Averager(model(), scheme, **options)


def test_a_loop_of_ones_own_copies_and_a_submission_exchanges():
  net = model()
  storage = net.weight.data_ptr()
  config = AveragingConfig.from_point(averaging_scheme='ema', ema_decay=0.5)
  own, submission = (
    Averager(net, Ema(0.5)),
    Averager.from_config(net, config, budget=10),
  )
  for averager, is_copied in ((own, True), (submission, False)):
    averager.update()
    with averager.evaluating():
      assert (net.weight.data_ptr() == storage) == is_copied


def test_the_direct_form_and_a_point_share_their_states():
  config = AveragingConfig.from_point(
    averaging_scheme='ema', averaging_horizon=0.1
  )
  one = Averager.from_config(model(), config, budget=1000)
  other = Averager(model(), Ema(horizon=0.1), total_steps=1000)
  one.update()
  one.update()
  other.load_state_dict(one.state_dict())
  assert (other.step, other.samples) == (2, 1)


def test_the_lowest_finite_loss_is_chosen_by_name():
  net = model()
  averager = Averager(net, Auto([Ema(0.5), Polynomial(0.0), Ema(0.9)]))
  assert averager.choice.names == (
    'Ema(decay=0.5)',
    'Polynomial(power=0.0)',
    'Ema(decay=0.9)',
  )
  for value in (1.0, 2.0, 6.0):
    net.weight.data.fill_(value)
    averager.update()
  assert averager.choose([1.0, 0.5, 0.5]) == 'Polynomial(power=0.0)'
  with averager.evaluating():
    assert net.weight.item() == 3.0
  assert averager.choose([2.0, float('nan'), 1.0]) == 'Ema(decay=0.9)'
  assert averager.choose([float('nan')] * 3) == 'raw'
  with averager.evaluating():
    assert net.weight.item() == 6.0
  with pytest.raises(ValueError, match='1 for 3 candidates'):
    averager.choose([1.0])
  with pytest.raises(ValueError, match='Must be one number for each candid'):
    averager.choose(torch.ones(3, 2))


def test_evaluating_may_look_at_one_average_without_choosing_it():
  net = model()
  averager = Averager(net, Auto([Polynomial(0.0), Ema(0.0)]))
  for value in (1.0, 2.0):
    net.weight.data.fill_(value)
    averager.update()
  averager.choose([1.0, 0.0])
  with averager.evaluating(0):
    assert net.weight.item() == 1.5
    with (
      pytest.raises(RuntimeError, match=r'swap_out\(\)'),
      averager.evaluating(1),
    ):
      pass
  with averager.evaluating():
    assert net.weight.item() == 2.0


def test_auto_without_a_choice_says_that_it_shows_the_raw_weights(caplog):
  averager = Averager(model(), Auto([Ema(0.5)]))
  averager.update()
  with caplog.at_level('WARNING', logger='absl'):
    for _ in range(2):
      with averager.evaluating():
        assert not averager.swapped
  assert caplog.text.count('No average has been chosen among') == 1
  averager.choose([1.0])
  with averager.evaluating():
    assert averager.swapped


def test_a_candidate_that_was_tried_is_not_chosen(caplog):
  averager = Averager(model(), Auto([Ema(0.5)]))
  averager.update()
  with caplog.at_level('WARNING', logger='absl'):
    for which in (0, -1):
      with averager.evaluating(which):
        pass
    assert 'No average has been chosen' not in caplog.text
    with averager.evaluating():
      pass
  assert 'No average has been chosen' in caplog.text


@pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')
def test_scripted_and_traced_modules_are_averaged():
  net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
  scripted = torch.jit.script(net)
  traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
  for module in (scripted, traced):
    averager = Averager(module, Ema(0.5))
    parameters = list(module.parameters())
    for value in (0.0, 3.0):
      for p in parameters:
        p.data.fill_(value)
      averager.update()
    with averager.evaluating():
      # (1/3) 0 + (2/3) 3, in float32.
      assert parameters[0].flatten()[0].item() == pytest.approx(2.0)
    assert parameters[0].flatten()[0].item() == 3.0
