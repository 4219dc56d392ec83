"""Measure a LAWA sample and the mean of ten samples."""

import torch

from benchmarks.measure import Ratio, compare, merge, transformer_parameters
from weightavg.pytorch.accumulators import WindowAccumulator
from weightavg.schemes import Lawa

WINDOW = 10
# Ten reads and one write, in units of a flat copy's one read and one write.
BYTES_IN_COPIES = (WINDOW + 1) / 2


def measure() -> dict[str, Ratio]:
  weights = [p.detach() for p in transformer_parameters()]
  track = WindowAccumulator(Lawa(WINDOW), weights)
  for _ in range(WINDOW):
    track.add(weights)
  flat = torch.randn(sum(w.numel() for w in weights))
  copy = torch.empty_like(flat)
  samples = [[w.clone() for w in weights] for _ in range(WINDOW)]
  mean = [torch.zeros_like(w) for w in weights]

  def naive_loop() -> None:
    for i, m in enumerate(mean):
      m.zero_()
      for sample in samples:
        m.add_(sample[i] / WINDOW)

  bytes_limit = 'lawa_mean_10/bytes_limit'
  return merge(
    [
      compare(
        lambda: track.add(weights),
        {
          'lawa_sample/flat_copy': (
            'one copy_ of one flat tensor of the same bytes',
            lambda: copy.copy_(flat),
          )
        },
      ),
      compare(
        lambda: track.average(),
        {
          bytes_limit: (
            'ten reads and one write at the speed of a flat copy',
            lambda: copy.copy_(flat),
          ),
          'lawa_mean_10/naive_loop': (
            'a loop over tensors that divides and adds',
            naive_loop,
          ),
        },
        scale={bytes_limit: BYTES_IN_COPIES},
      ),
    ]
  )
