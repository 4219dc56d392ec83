"""Local workloads with few examples, and few steps."""


def shrinker(patch):
  """Return a function that makes a local workload small.

  It sets public attributes of the class: few evaluation examples, and where
  they are given the number of steps, the distance of evaluations in steps and
  the targets. `patch`, a pytest.MonkeyPatch, takes that back.
  """

  def shrink(workload, steps=None, eval_every_steps=None, target=None, size=32):
    changes = {
      'sizes': {'eval_train': size, 'validation': size, 'test': size},
      'evaluation_batch_size': size,
      'step_hint': steps,
      'eval_every_steps': eval_every_steps,
      'validation_target_value': target,
      'test_target_value': target,
    }
    for name, value in changes.items():
      if value is not None:
        patch.setattr(workload, name, value)

  return shrink
