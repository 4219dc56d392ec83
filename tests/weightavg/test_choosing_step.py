"""The training step that chooses an average: probes, losses, choices."""

import copy
import logging as std_logging

import pytest
import torch
from choosing_runs import ROWS, Host, batches, rows
from tensors import assert_same
from torch import nn

from weightavg.pytorch import choosing_step
from weightavg.pytorch.choice import RAW


def test_what_is_set_aside_is_never_trained_on():
  host = Host()
  for _ in range(12):
    host.update()
    host.prepare()
  # Probes at steps 0, 4 and 8; the queue gave 12 + 3 batches.
  assert len(host.workload.trained_on) == 12
  looked_at = rows(host.workload.looked_at)
  assert len(looked_at) == 3 * 2
  assert not looked_at & rows(host.workload.trained_on)


def test_data_selection_leaves_the_state_alone():
  host = Host()
  host.update()
  for step in (0, 1, 4):
    host.step = step
    before = host.save()
    batch = host.select()
    assert (choosing_step.PROBE in batch) == (step % 4 == 0)
    assert host.save() == before


def by_hand(host):
  """Losses of the candidates, each copied into a model of its own."""
  probe, averager = host.state['probe'].batch, host.averager
  losses = []
  for which in range(len(averager.choice.names)):
    averager.select(which)
    with averager.evaluating():
      model = copy.deepcopy(host.model).eval()
    values, paddings = probe['targets']
    mask = (1 - paddings) * probe['weights'][:, None]
    squares = (model(probe['inputs']) - values).square() * mask
    losses.append((squares.sum() / mask.sum()).item())
  return losses


def test_the_loss_on_the_probe_decides():
  # What one evaluation alone says.
  host = Host(averaging_probe_examples=ROWS, averaging_probe_memory=0.0)
  chosen = set()
  for step in range(1, 31):
    host.update()
    previous = host.averager.choice.selected
    losses = by_hand(host)
    host.averager.select(previous)
    raw = host.weights()
    host.prepare()
    now = host.averager.choice.selected
    logged_step, row = host.workload.metrics_logger.rows[-1]
    names = host.averager.choice.names
    assert logged_step == step
    assert row['averaging_choice'] == now
    for name, loss in zip(names, losses, strict=True):
      assert row[f'probe_loss/{name}'] == pytest.approx(loss, rel=1e-6)
    assert now == previous or losses[now] == min(losses)
    host.averager.swap_out()
    assert_same(host.weights(), raw)
    chosen.add(now)
  # Else this test would say little.
  assert len(chosen) >= 3


def test_what_is_chosen_is_shown():
  host = Host(averaging_candidates='polynomial 0')
  for _ in range(3):
    host.update()
  raw = host.weights()
  assert host.averager.choice.selected == RAW
  host.prepare()
  assert host.averager.choice.selected == 0
  shown = host.weights()
  host.averager.swap_out()
  assert_same(host.weights(), raw)
  with host.averager.evaluating():
    assert_same(host.weights(), shown)
  assert not torch.equal(shown[0], raw[0])


def test_a_second_call_in_a_row_changes_nothing():
  host = Host()
  for _ in range(9):
    host.update()
    host.prepare()
    first, selected = host.weights(), host.averager.choice.selected
    host.prepare()
    assert host.averager.choice.selected == selected
    assert_same(host.weights(), first)


def test_a_checkpoint_between_evaluations_makes_no_choice():
  """The next one is that of a run without the checkpoint."""
  one, other = Host(), Host()
  for step in range(9):
    one.update()
    other.update()
    if step % 3 == 2:
      one.prepare()
      other.prepare()
    else:
      one.prepare(choosing_step.prepare_for_checkpoint)
    assert one.averager.choice.selected == other.averager.choice.selected
  assert_same(one.weights(), other.weights())
  states = [host.state['selector'].state_dict() for host in (one, other)]
  for key in ('before', 'latest'):
    assert states[0][key]
    assert_same(*(state[key] for state in states))


def test_training_with_choices_equals_training_without():
  one, other = Host(), Host()
  for _ in range(10):
    one.update()
    one.prepare()
    other.update()
  one.averager.swap_out()
  assert_same(one.weights(), other.weights())
  buffers = [dict(host.model.named_buffers()) for host in (one, other)]
  assert_same(buffers[0].values(), buffers[1].values())
  assert one.model_state == other.model_state == {'calls': 10}


def nan_for(*candidates):
  """A spoiler: of every five looks, those at these candidates are NaN."""

  def spoil(call, losses):
    # The first look ever is the check of the first step.
    return losses * float('nan') if (call - 2) % 5 in candidates else losses

  return spoil


def test_a_candidate_with_a_loss_that_is_not_finite_is_out():
  host = Host()
  host.workload.spoil = nan_for(0, 1, 2, 4)
  for _ in range(3):
    host.update()
    host.prepare()
    assert host.averager.choice.selected == 3


def test_if_all_are_out_the_raw_weights_are_shown(caplog):
  host = Host()
  host.update()
  host.prepare()
  host.workload.spoil = nan_for(0, 1, 2, 3, 4)
  host.update()
  raw = host.weights()
  with caplog.at_level(std_logging.INFO, logger='absl'):
    host.prepare()
  assert host.averager.choice.selected == RAW
  assert_same(host.weights(), raw)
  assert host.workload.metrics_logger.rows[-1][1]['averaging_choice'] == RAW
  assert 'evaluation sees raw (no finite loss)' in caplog.text


def _no_evaluation(call, losses):
  raise NotImplementedError('no evaluation')


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (
      _no_evaluation,
      'Cannot choose among averages: the loss of Workload cannot be computed '
      'in evaluation mode (NotImplementedError: no evaluation).',
    ),
    (
      lambda call, losses: losses.mean(0, keepdim=True),
      'Cannot choose among averages: Workload gives 1 losses for 2 examples.',
    ),
  ],
)
def test_a_loss_that_cannot_be_computed_fails_in_the_first_step(spoil, message):
  host = Host()
  host.workload.spoil = spoil
  before = host.weights()
  with pytest.raises(ValueError, match='Cannot choose') as error:
    host.update()
  assert str(error.value) == message
  assert_same(host.weights(), before)


def test_a_probe_of_more_than_a_batch_fails_in_the_first_step():
  host = Host(averaging_probe_examples=ROWS + 1)
  with pytest.raises(ValueError, match='Must be at most the batch size, 8'):
    host.update()


def test_masks_may_be_missing():
  queue = ({k: b[k] for k in ('inputs', 'targets')} for b in batches())
  host = Host(queue)
  for _ in range(5):
    host.update()
    host.prepare()
  assert len(host.workload.metrics_logger.rows) == 5


def test_padding_is_no_evidence():
  # The same examples, and as many masked ones behind them.
  def padded():
    for batch in batches():
      whole = {'targets': [], 'inputs': batch['inputs'].repeat(2, 1)}
      whole['targets'] = tuple(t.repeat(2, 1) for t in batch['targets'])
      mask = torch.zeros(ROWS)
      whole['weights'] = torch.cat([batch['weights'], mask])
      yield whole

  # In evaluation mode rows do not see each other; training is not looked at.
  hosts = [
    Host(batches(), averaging_probe_examples=ROWS),
    Host(padded(), averaging_probe_examples=2 * ROWS),
  ]
  sums = []
  for host in hosts:
    probe = host.state['probe']
    probe.set_aside(next(host.queue))
    result = choosing_step.compare_candidates(
      host.workload, host.model, {'calls': 0}, host.averager, probe.batch, 0
    )
    sums.append(result)
  # One of the eight is masked in either.
  assert sums[0].counts.tolist() == sums[1].counts.tolist()
  assert sums[0].counts[0] == ROWS - 1
  # The order of the sums differs.
  torch.testing.assert_close(sums[0].losses, sums[1].losses, rtol=1e-6, atol=0)


def masked_squares(logits, values, paddings, mask):
  return (logits - values).square() * (1 - paddings) * mask[:, None]


# Dynamo looks at .grad of what it traces.
@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor')
def test_a_compiled_loss_never_sees_the_probe():
  shapes = []

  def backend(graph, inputs):
    shapes.append([tuple(t.shape) for t in inputs if torch.is_tensor(t)])
    return graph

  if not hasattr(torch.compiler, 'set_stance'):
    pytest.skip('torch 2.5 cannot leave compiled functions uncompiled')
  compiled = torch.compile(masked_squares, backend=backend)

  def loss_fn(label_batch, logits_batch, mask_batch, label_smoothing=0.0):
    losses = compiled(logits_batch, *label_batch, mask_batch)
    return {
      'summed': losses.sum(),
      'n_valid_examples': mask_batch.sum(),
      'per_example': losses,
    }

  host = Host()
  host.workload.loss_fn = loss_fn
  host.update()
  host.prepare()
  assert shapes
  assert all(ROWS in {size[0] for size in seen if size} for seen in shapes)
  assert not any((2, 2) in seen for seen in shapes)
  torch._dynamo.reset()


def test_losses_of_many_tokens_keep_their_differences():
  class Tokens:
    def model_fn(self, params, **_):
      return params, None

    def loss_fn(self, label_batch, logits_batch, mask_batch):
      losses = logits_batch + label_batch
      return {'per_example': losses, 'n_valid_examples': losses.numel()}

  # 256 tokens of 8 nats: a sum in bfloat16 comes in steps of 16.
  batch = {'targets': torch.zeros(2, 256, dtype=torch.bfloat16)}
  model = nn.Module()
  logits = torch.full((2, 256), 8.0, dtype=torch.bfloat16)
  logits[1, 0] = 8.0625
  workload = Tokens()
  workload.model_fn = lambda **_: (logits, None)
  losses, _ = choosing_step.example_losses(workload, model, None, batch, 0)
  assert losses.tolist() == [2048.0, 2048.0625]


def test_a_batch_of_another_make_is_no_probe():
  probe = Host().state['probe']
  probe.load_state_dict({'number': 1, 'shares': [[torch.ones(2)]]})
  assert not probe.is_due(1)
  probe.fit(next(batches()))
  assert probe.batch is None
  assert probe.is_due(1)
