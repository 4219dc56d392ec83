"""NadamW on DTensors: FSDP2, HSDP, tensor parallelism, and checkpoints."""

import nadamw_ranks
import pytest
import torch
from gloo import run_on_ranks

from weightavg.pytorch import NadamW

# Gradients are averaged over ranks, and sums are taken in another order: a few
# roundings of float64 a step.
TOLERANCE = 1e-12


def alone(*width):
  model = nadamw_ranks.build_model(*width)
  optimizer = NadamW(model.parameters(), **nadamw_ranks.SETTINGS)
  nadamw_ranks.train(model, optimizer, 1, nadamw_ranks.STEPS)
  return nadamw_ranks.whole(model)


def assert_close(actual, expected):
  for name, value in expected.items():
    torch.testing.assert_close(
      actual[name], value, rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Save results by rank and a distributed checkpoint on two ranks."""
  path = tmp_path_factory.mktemp('sharded')
  run_on_ranks(2, nadamw_ranks.save_and_finish, str(path))
  return path


def load(folder, name):
  return torch.load(folder / name, weights_only=True)


@pytest.mark.parametrize('way', ['fsdp', 'hsdp replicated', 'hsdp sharded'])
def test_sharded_parameters_train_as_whole_ones(folder, way):
  for rank in range(2):
    assert_close(load(folder, f'{rank}.pt')[way], alone())


def test_tensor_parallel_parameters_train_as_whole_ones(folder):
  expected = alone(nadamw_ranks.EVEN_WIDTH)
  for rank in range(2):
    assert_close(load(folder, f'{rank}.pt')['tensor parallel'], expected)


def test_moments_are_sharded_as_their_parameters(folder):
  assert load(folder, '0.pt')['placements'] == '(Shard(dim=0),)'


def test_a_gradient_of_another_placement_is_redistributed(folder):
  p = torch.nn.Parameter(torch.ones(4, 2))
  p.grad = torch.arange(8.0).view(4, 2)
  NadamW([p], lr=0.1).step()
  result = load(folder, '0.pt')['other placement']['p']
  assert torch.equal(result, p.detach())


@pytest.mark.filterwarnings('ignore:torch.distributed is disabled')
def test_one_process_continues_from_two(folder):
  model = nadamw_ranks.build_model()
  optimizer = NadamW(model.parameters(), **nadamw_ranks.SETTINGS)
  nadamw_ranks.resume(model, optimizer, folder)
  first, last = nadamw_ranks.SAVED_AT + 1, nadamw_ranks.STEPS
  nadamw_ranks.train(model, optimizer, first, last)
  assert_close(nadamw_ranks.whole(model), alone())


@pytest.mark.slow
def test_three_ranks_continue_from_two(folder):
  run_on_ranks(3, nadamw_ranks.finish, str(folder))
  for rank in range(3):
    assert_close(load(folder, f'3.{rank}.pt'), alone())
