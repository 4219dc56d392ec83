"""The submissions in JAX by their folders, and how their states compare."""

import numpy as np
from jax_support import import_jax

jax = import_jax('jax')
jax_host = import_jax('jax_host')

Host = jax_host.Host
FOLDERS = sorted(
  p.parent.name for p in jax_host.ROOT.glob('submissions/*_jax/submission.py')
)
BARE = 'nadamw_jax'
AUTO = 'nadamw_auto_jax'
# Statistics of y are shown with x.
PRIMAL = 'nadamw_primal_jax'
# Statistics of x come from forward passes.
REFRESHED = 'nadamw_schedule_free_jax'
# auto may find the raw weights best; with one candidate it cannot. At the start
# of a long warm-up the average is the last sample but for rounding.
ONLY = {
  AUTO: {'averaging_candidates': 'ema 0.1'},
  REFRESHED: {'warmup_steps': 5},
}


def is_equal(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def run(host, steps):
  for _ in range(steps):
    host.update()
  return host
