"""Common ground of all tests: seeded, single-threaded, on the CPU."""

import os

# Before torch is imported: two workers on two cores must not fight for them.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
  torch.manual_seed(0)
