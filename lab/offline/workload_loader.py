"""The workload that a sweep evaluates on: a local one, or AlgoPerf's."""

import os
from typing import Any

from absl import flags

from lab import workloads
from lab.core.errors import InputError


def find_workload(name: str, tokenizer_vocab_path: str = '') -> Any:
  """A workload by its name.

  Args:
    name: of a local workload, or of AlgoPerf's where it is installed.
    tokenizer_vocab_path: of the librispeech workloads.

  Raises:
    InputError: there is no such workload.
  """
  if name in workloads.WORKLOADS:
    return workloads.build_workload(name)
  try:
    from algoperf.workloads import workloads as registry
  except ImportError as error:
    raise InputError(
      f'Invalid workload={name!r}. Must be one of '
      f"{', '.join(sorted(workloads.WORKLOADS))}; AlgoPerf's need algoperf."
    ) from error
  if name not in registry.WORKLOADS:
    raise InputError(f'Invalid workload={name!r}. AlgoPerf has no such one.')
  _prepare_process()
  entry = registry.WORKLOADS[name]
  path = f'{registry.BASE_WORKLOADS_DIR}{entry["workload_path"]}_pytorch'
  known = {}
  if tokenizer_vocab_path:
    path_of_vocabulary = os.path.expanduser(tokenizer_vocab_path)
    known['tokenizer_vocab_path'] = path_of_vocabulary
  workload = registry.import_workload(
    f'{path}/workload.py',
    entry['workload_class_name'],
    workload_init_kwargs=known,
  )
  if hasattr(workload, '_eval_num_workers'):
    workload.eval_num_workers = 0
  return workload


def _prepare_process() -> None:
  """What AlgoPerf's own runner sees to before it makes a workload."""
  import jax
  import tensorflow as tf

  # They prepare data only; left alone they take all of a device's memory.
  tf.config.set_visible_devices([], 'GPU')
  jax.config.update('jax_platforms', 'cpu')
  # Its random numbers ask the command line which framework is meant.
  if 'framework' not in flags.FLAGS:
    flags.DEFINE_string('framework', 'pytorch', 'Framework of the submission.')
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
