"""Hyperparameters of training at an average, over NadamW and Shampoo.

The average takes the place of the momentum, which is off. Figures:

- mu = 0.9: Schedule-Free's default (2405.15682).
- horizon 3 %: the length that reached the most targets among those tried on
  the local workloads before any of the studies (1 % is for averages that
  watch).
- BatchNorm's statistics: those of y where the learning rate decays, and y and x
  come together; refreshed at x where it does not (measured in
  docs/averaging.md).
- The rest of the points is that of AlgoPerf's published points of NadamW, of
  the winning Shampoo submission, and of AlgoPerf's two Schedule-Free
  submissions.
- A warm-up of 2 / (1 - beta2) steps, which needs no budget: Ma and Yarats 2021
  (1910.04209).
"""

from weightavg.optimizers import nadamw, shampoo

DEFAULTS = {
  'one_minus_beta1': 1.0,
  'averaging_interpolation': 0.9,
}
PRIMAL_DEFAULTS = DEFAULTS | {
  'averaging_horizon': 0.03,
  'averaging_batch_norm': 'current',
}
SCHEDULE_FREE_DEFAULTS = DEFAULTS | {
  'schedule': 'constant',
  'averaging_batch_norm': 'refreshed',
}

NADAMW_POINT = nadamw.SELF_TUNING_POINT | {'one_minus_beta1': 1.0}
SHAMPOO_POINT = shampoo.SELF_TUNING_POINT | {'one_minus_beta1': 1.0}

# AlgoPerf's submission schedule_free_adamw_v2, with the warm-up above. Without
# a schedule there is nothing to plan on the clock.
SCHEDULE_FREE_POINT = {
  'learning_rate': 0.0025,
  'beta2': 0.9955159689799007,
  'weight_decay': 0.08121616522670176,
  'warmup_steps': 446,
  'label_smoothing': 0.2,
}
# Shampoo's own, with the same warm-up: its beta2 is the same.
SHAMPOO_SCHEDULE_FREE_POINT = {
  key: value
  for key, value in shampoo.SELF_TUNING_POINT.items()
  if key not in ('one_minus_beta1', 'warmup_factor', 'budget')
} | {'warmup_steps': 446}
