"""AlgoPerf's score by loops over its definition."""

import itertools
import math

import numpy as np

INF = math.inf


def slow_scores(times, base, held_out=()):
  """Score of each submission.

  Args:
    times: Submission -> workload -> seconds, infinite or absent where missed.
    base: Base workloads.
    held_out: (held-out workload, base workload) pairs.
  """
  workloads = [*base, *(variant for variant, _ in held_out)]
  times = {
    s: {w: own.get(w, INF) for w in workloads} for s, own in times.items()
  }
  for own in times.values():
    for variant, of in held_out:
      own[variant] = own[variant] if own[of] < INF else INF
  for workload in workloads:
    fastest = min(own[workload] for own in times.values())
    for own in times.values():
      if own[workload] > 4 * fastest:
        own[workload] = INF
  for own in times.values():
    for variant, of in held_out:
      own[of] = own[of] if own[variant] < INF else INF
  result = {}
  for name, own in times.items():
    heights = []
    for tau in np.linspace(1, 4, 100):
      count = 0
      for workload in base:
        fastest = min(other[workload] for other in times.values())
        count += own[workload] < INF and own[workload] / fastest <= tau
      heights.append(count / len(base))
    area = sum((a + b) / 2 for a, b in itertools.pairwise(heights))
    result[name] = area / 99
  return result
