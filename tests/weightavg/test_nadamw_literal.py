"""Literal counts and copies of NadamW, without which mutants survived."""

import copy

import torch

from weightavg.pytorch import NadamW
from weightavg.pytorch.followers import Followers


def build():
  p = torch.nn.Parameter(torch.ones(2))
  p.grad = torch.ones(2)
  return p, NadamW([p], lr=0.1)


def test_the_last_step_with_followers_is_taken_back_once():
  p, optimizer = build()
  # Before the first step nothing is counted.
  optimizer.uncount()
  for _ in range(3):
    optimizer.lead(Followers({p: torch.zeros(2)}, 0.0, 0.0))
    optimizer.step()
  for _ in range(2):
    optimizer.uncount()
    assert optimizer.state[p]['step'] == 2


def test_a_copy_has_no_step_to_take_back():
  p, optimizer = build()
  optimizer.lead(Followers({p: torch.zeros(2)}, 0.0, 0.0))
  optimizer.step()
  twin = copy.deepcopy(optimizer)
  twin.uncount()
  (state,) = twin.state.values()
  assert state['step'] == 1
