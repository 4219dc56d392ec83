"""The framework that a submission is written in."""

FRAMEWORKS = ('pytorch', 'jax')


def framework_of(submission: str) -> str:
  """Return the framework by a submission's name.

  >>> framework_of('nadamw_ema_jax'), framework_of('nadamw_ema')
  ('jax', 'pytorch')
  """
  return 'jax' if submission.endswith('_jax') else 'pytorch'
