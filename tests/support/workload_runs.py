"""The laboratory's workloads by name: their models, batches and evaluations."""

import functools

import numpy as np
import pytest
import torch

from lab import workloads
from weightavg import spec

TRAIN, EVAL = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL
NAMES = sorted(workloads.WORKLOADS)
RNG = np.array([11, 12])
each_workload = pytest.mark.parametrize('name', NAMES)


@functools.cache
def built(name):
  return workloads.build_workload(name)


def queue_of(workload, split='train', batch_size=8, rng=RNG):
  return workload._build_input_queue(rng, split, '', batch_size)


def forward(workload, model, batch, mode=TRAIN, update=True, dropout=0.0):
  logits, state = workload.model_fn(
    model, batch, None, mode, RNG, update, dropout
  )
  assert state is None
  return logits


def evaluate(workload, model, split, batch_size):
  size = workload.sizes[split]
  return workload._eval_model_on_split(
    split, size, batch_size, model, None, RNG, ''
  )


def assert_same_batch(left, right):
  assert left.keys() == right.keys()
  for name in left:
    assert torch.equal(left[name], right[name]), name
