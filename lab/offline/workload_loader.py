"""Build the workload of a sweep: a local one, or one of AlgoPerf."""

import os
from typing import Any

from absl import flags

from lab import workloads
from lab.core.errors import InputError


def find_workload(name: str, tokenizer_vocab_path: str = '') -> Any:
  """Build a workload by its name.

  Args:
    name: a local workload, or one of AlgoPerf if that is installed.
    tokenizer_vocab_path: vocabulary of the librispeech workloads.

  Raises:
    InputError: the name is unknown.
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
    raise InputError(
      f'Invalid workload={name!r}. Must be one of '
      f'{", ".join(sorted([*workloads.WORKLOADS, *registry.WORKLOADS]))}.'
    )
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
  """Configure the process as AlgoPerf's runner does before a workload."""
  import jax
  import tensorflow as tf

  # They only prepare data and would otherwise reserve the device's memory.
  tf.config.set_visible_devices([], 'GPU')
  jax.config.update('jax_platforms', 'cpu')
  # AlgoPerf's random numbers read the framework from the command line.
  if 'framework' not in flags.FLAGS:
    flags.DEFINE_string('framework', 'pytorch', 'Framework of the submission.')
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
