"""Tensors through a file, and compared bit for bit."""

import io

import torch


def through_a_file(state):
  file = io.BytesIO()
  torch.save(state, file)
  file.seek(0)
  return torch.load(file, weights_only=True)


def assert_same(a, b):
  """Compare two sequences."""
  for x, y in zip(a, b, strict=True):
    assert torch.equal(x, y)


def assert_same_by_name(a, b):
  """Compare two mappings from names."""
  assert a.keys() == b.keys()
  for name in a:
    assert torch.equal(a[name], b[name]), name
