"""Examples set aside: rows, nests, renewals, states, ranks."""

import collections
import io

import pytest
import torch
from gloo import run_on_ranks

from weightavg.pytorch.probes import Probe, first_examples, leaves, num_examples

Graph = collections.namedtuple('Graph', ['nodes', 'edges', 'name'])


def batch(rows=8, start=0):
  """Inputs and targets as speech has them: values and paddings."""
  values = torch.arange(start, start + rows * 3.0).view(rows, 3)
  return {
    'inputs': (values, torch.zeros(rows, 3)),
    'targets': (values[:, :2] + 0.5, torch.ones(rows, 2)),
    'weights': torch.ones(rows),
  }


def assert_same(a, b):
  tensors = [*leaves(a)], [*leaves(b)]
  for x, y in zip(*tensors, strict=True):
    assert torch.equal(x, y)


def through_a_file(state):
  file = io.BytesIO()
  torch.save(state, file)
  file.seek(0)
  return torch.load(file, weights_only=True)


def test_the_first_rows_of_every_tensor_are_kept_as_copies():
  whole = batch()
  kept = first_examples(whole, 3)
  assert num_examples(kept) == 3
  assert isinstance(kept['inputs'], tuple)
  assert torch.equal(kept['targets'][0], whole['targets'][0][:3])
  before = kept['inputs'][0].clone()
  whole['inputs'][0].zero_()
  assert torch.equal(kept['inputs'][0], before)


def test_a_batch_of_graphs_is_kept_whole():
  nodes = torch.arange(11.0)
  graphs = {
    'inputs': Graph(nodes, torch.zeros(20, 2), 'molecules'),
    'targets': torch.zeros(4, 1),
  }
  kept = first_examples(graphs, 2)
  assert type(kept['inputs']) is Graph
  assert kept['inputs'].name == 'molecules'
  assert_same(kept, graphs)


@pytest.mark.parametrize(
  ('examples', 'kept'), [(None, 2), (2, 2), (5, 5), (8, 8)]
)
def test_a_quarter_of_a_batch_unless_told(examples, kept):
  probe = Probe(examples, every=10)
  probe.set_aside(batch())
  assert num_examples(probe.batch) == kept


def test_a_probe_of_more_than_a_batch_is_refused():
  probe = Probe(9, every=10)
  with pytest.raises(ValueError) as error:  # noqa: PT011
    probe.set_aside(batch())
  assert str(error.value) == (
    'Invalid averaging_probe_examples=9. Must be at most the batch size, 8.'
  )
  assert probe.batch is None


def test_a_short_batch_later_on_gives_what_it_has():
  probe = Probe(8, every=1)
  probe.set_aside({'inputs': torch.ones(8, 1), 'targets': torch.ones(8)})
  probe.set_aside({'inputs': torch.ones(3, 1), 'targets': torch.ones(3)})
  assert num_examples(probe.batch) == 3


def test_one_is_due_at_once_and_then_every_so_many_steps():
  probe = Probe(None, every=4)
  due = []
  for step in range(3, 13):
    if probe.is_due(step):
      due.append(step)
      probe.set_aside(batch())
  assert due == [3, 4, 8, 12]


def test_a_state_comes_back_in_the_nest_of_a_training_batch():
  probe = Probe(None, every=4)
  probe.set_aside(batch(start=100))
  saved = through_a_file(probe.state_dict())
  restored = Probe(None, every=4)
  restored.load_state_dict(saved)
  # Saved again before anything happens: a run that ends as it is resumed.
  assert_same(restored.state_dict(), saved)
  assert not restored.is_due(5)
  assert restored.batch is None
  restored.fit(batch())
  assert restored.batch.keys() == probe.batch.keys()
  assert_same(restored.batch, probe.batch)
  restored.set_aside(batch(start=7))
  probe.set_aside(batch(start=7))
  assert_same(restored.state_dict(), probe.state_dict())


def test_without_checkpoints_a_resumed_run_sets_a_new_one_aside():
  probe = Probe(None, every=4, checkpoints=False)
  probe.set_aside(batch())
  saved = probe.state_dict()
  assert saved == {'number': 1, 'shares': []}
  restored = Probe(None, every=4)
  restored.load_state_dict(saved)
  assert restored.is_due(5)


def test_a_state_of_another_number_of_ranks_is_none():
  restored = Probe(None, every=4)
  shares = [[torch.ones(2)], [torch.ones(2)]]
  restored.load_state_dict({'number': 3, 'shares': shares})
  assert restored.is_due(5)
  assert restored.state_dict() == {'number': 3, 'shares': []}


def _on_rank(rank):
  probe = Probe(6, every=4)
  # Ranks may have graphs of different sizes.
  own = batch(rows=8, start=1000 * rank)
  own['extra'] = torch.full((2 + rank,), float(rank))
  probe.set_aside(own)
  # Rows that cannot be told apart: all are kept.
  assert num_examples(probe.batch) == 8
  del own['extra']
  probe.set_aside(own)
  assert num_examples(probe.batch) == 3
  state = probe.state_dict()
  if rank:
    assert state == {'number': 2, 'shares': []}
  shares = [[*leaves(first_examples(batch(start=1000 * r), 3))] for r in (0, 1)]
  if rank == 0:
    assert_same(state['shares'], shares)
  # Every rank loads what rank 0 wrote.
  restored = Probe(6, every=4)
  restored.load_state_dict({'number': 2, 'shares': shares})
  restored.fit(own)
  assert_same(restored.batch, probe.batch)
  with pytest.raises(ValueError, match='at most the batch size, 16'):
    Probe(17, every=4).set_aside(own)


def test_rank_0_saves_the_shares_of_all_ranks():
  run_on_ranks(2, _on_rank)
