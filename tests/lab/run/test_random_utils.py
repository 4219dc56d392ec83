"""Random states of a run."""

import numpy as np
import pytest
import torch

from lab.run import random_utils

KEY_0 = [1484405855, 1838574579]
SPLIT_0 = [[1042992548, 1876254877], [1996498532, 1488643788]]
FOLD_0 = [454754342, 27180110]


def as_tuples(states):
  return [tuple(state) for state in np.asarray(states).reshape(-1, 2).tolist()]


def test_states_are_pairs_of_non_negative_int32():
  states = random_utils.split(random_utils.key(0), 100)
  assert states.shape == (100, 2)
  assert states.dtype == np.int32
  assert (states >= 0).all()
  assert random_utils.fold_in(states[0], 3).shape == (2,)


def test_the_same_seed_gives_the_same_states():
  a, b = random_utils.key(7), random_utils.key(7)
  assert as_tuples(random_utils.split(a, 3)) == as_tuples(
    random_utils.split(b, 3)
  )
  assert as_tuples(random_utils.fold_in(a, 5)) == as_tuples(
    random_utils.fold_in(b, 5)
  )


def test_no_two_states_are_alike():
  root = random_utils.key(0)
  states = as_tuples(root)
  states += as_tuples(random_utils.split(root, 50))
  # Steps 0 and 1 among them: short entropy is padded with zeros.
  for step in range(50):
    states += as_tuples(random_utils.fold_in(root, step))
  states += as_tuples(random_utils.key(1))
  assert len(set(states)) == len(states)


@pytest.mark.parametrize('seed', [0, 2**32 - 1, 2**63 - 1])
def test_seeds_may_be_large(seed):
  rng = random_utils.key(seed)
  assert 0 <= random_utils.torch_seed(rng) < 2**62


def test_ranks_have_seeds_of_their_own():
  rng = random_utils.key(0)
  assert len({random_utils.torch_seed(rng, rank) for rank in range(8)}) == 8


def test_known_states_stay():
  # A changed generator would change every published local result.
  assert random_utils.key(0).tolist() == KEY_0
  assert random_utils.split(random_utils.key(0)).tolist() == SPLIT_0
  assert random_utils.fold_in(random_utils.key(0), 1).tolist() == FOLD_0


def test_torch_draws_as_after_its_own_seeding():
  seed = random_utils.torch_seed(random_utils.key(7))
  torch.manual_seed(seed)
  expected = torch.randn(5)
  torch.manual_seed(0)
  random_utils.seed_torch(seed)
  assert torch.equal(torch.randn(5), expected)


def test_a_cuda_device_is_seeded_too(monkeypatch):
  seeds = []
  monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
  monkeypatch.setattr(torch, 'manual_seed', seeds.append)
  random_utils.seed_torch(11)
  assert seeds == [11]
