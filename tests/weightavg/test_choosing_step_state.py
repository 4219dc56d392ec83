"""The training step that chooses an average: resumption, several ranks."""

import pytest
import torch
import torch.distributed as dist
from choosing_runs import ROWS, Host, batches
from gloo import run_on_ranks
from tensors import assert_same


@pytest.mark.parametrize('placement', ['device', 'cpu', 'sharded'])
@pytest.mark.parametrize('prepared', [False, True])
@pytest.mark.parametrize('step', [1, 3, 4, 7])
def test_a_resumed_run_chooses_as_the_undisturbed_one(
  step, prepared, placement
):
  knobs = {'averaging_placement': placement}
  host = Host(**knobs)
  for _ in range(step):
    host.update()
  if prepared:
    host.prepare()
  saved = host.save()
  drawn = step + 1 + (step - 1) // 4
  queue = batches()
  for _ in range(drawn):
    next(queue)
  resumed = Host(queue, **knobs)
  resumed.restore(saved)
  for _ in range(6):
    for h in (host, resumed):
      h.update()
      h.prepare()
    assert resumed.averager.choice.selected == host.averager.choice.selected
    assert_same(resumed.weights(), host.weights())
  assert (
    resumed.workload.metrics_logger.rows
    == (host.workload.metrics_logger.rows[-6:])
  )


def test_before_a_training_step_a_resumed_run_keeps_its_choice():
  host = Host(averaging_candidates='polynomial 0')
  for _ in range(5):
    host.update()
  host.prepare()
  resumed = Host(averaging_candidates='polynomial 0')
  resumed.restore(host.save())
  resumed.prepare()
  assert_same(resumed.weights(), host.weights())


def _on_rank(rank, folder, placement, steps):
  knobs = {'averaging_placement': placement, 'averaging_probe_examples': ROWS}
  host = Host(batches(0, rank, 2), **knobs)
  for step in range(steps):
    host.update()
    host.prepare()
    if step == 4:
      saved = host.save() if rank == 0 else b''
      shared = [saved]
      dist.broadcast_object_list(shared)
  torch.save(
    [
      [row['averaging_choice'] for _, row in host.workload.metrics_logger.rows],
      host.workload.metrics_logger.rows,
      host.weights(),
    ],
    f'{folder}/{rank}',
  )
  # Resumed from what rank 0 alone has saved.
  queue = batches(0, rank, 2)
  for _ in range(5 + 2):
    next(queue)
  resumed = Host(queue, **knobs)
  resumed.restore(shared[0])
  for _ in range(5, steps):
    resumed.update()
    resumed.prepare()
  assert_same(resumed.weights(), host.weights())
  assert (
    resumed.workload.metrics_logger.rows
    == (host.workload.metrics_logger.rows[5:])
  )


@pytest.mark.parametrize('placement', ['device', 'sharded'])
def test_ranks_take_the_same_decision_and_resume(tmp_path, placement):
  run_on_ranks(2, _on_rank, str(tmp_path), placement, 12)
  one, other = (
    torch.load(tmp_path / str(rank), weights_only=True) for rank in (0, 1)
  )
  assert one[0] == other[0]
  assert len(set(one[0])) > 1
  # The losses are those of all examples, on both ranks.
  assert one[1] == other[1]
  assert_same(one[2], other[2])
