"""The runner's command line: the benchmark's flags, and a few of its own."""

import dataclasses
from typing import Any

from absl import flags

from lab import workloads
from lab.core.errors import InputError
from lab.core.frameworks import FRAMEWORKS
from lab.run.settings import Settings

_WORKLOADS = ', '.join(sorted(workloads.WORKLOADS))

flags.DEFINE_string('workload', None, f'Workload to run. One of: {_WORKLOADS}.')
flags.DEFINE_string(
  'submission_path',
  None,
  'Path of the file with the submission functions, relative to the working '
  'directory.',
)
flags.DEFINE_enum(
  'framework', 'pytorch', [*FRAMEWORKS], 'Framework of the submission.'
)
flags.DEFINE_enum(
  'tuning_ruleset',
  'external',
  ['external', 'self'],
  'external: hyperparameters come from --tuning_search_space. self: the '
  'submission gets none, and 1.5 times the budget.',
)
flags.DEFINE_string(
  'tuning_search_space',
  None,
  'JSON file with a list of points or an object of ranges.',
)
flags.DEFINE_integer(
  'num_tuning_trials',
  1,
  'Number of points to run; a list gives at most as many as it has.',
  lower_bound=1,
)
flags.DEFINE_integer(
  'hparam_start_index',
  None,
  'First point to run, counted from 0.',
  lower_bound=0,
)
flags.DEFINE_integer(
  'hparam_end_index', None, 'Point to stop before.', lower_bound=0
)
flags.DEFINE_string('experiment_dir', None, 'Root of all experiments.')
flags.DEFINE_string('experiment_name', None, 'Name of this experiment.')
flags.DEFINE_boolean(
  'append_timestamp', False, 'Append the date and time to the name.'
)
flags.DEFINE_boolean(
  'resume_last_run', False, 'Go on from the last checkpoint of each trial.'
)
flags.DEFINE_boolean(
  'overwrite',
  False,
  'Delete an experiment of the same name first; with --hparam_start_index or '
  '--hparam_end_index only the trials that are run.',
)
flags.DEFINE_boolean(
  'save_checkpoints', True, 'Save at each evaluation and at the end.'
)
flags.DEFINE_boolean(
  'save_intermediate_checkpoints', True, 'Keep all; otherwise only the latest.'
)
flags.DEFINE_integer(
  'max_global_steps',
  None,
  'Steps after which a run ends; the schedule stays that of the step hint. By '
  'default the step hint (1.5 times it under --tuning_ruleset=self).',
  lower_bound=1,
)
flags.DEFINE_integer(
  'rng_seed',
  None,
  'Seed of everything random; drawn and recorded if absent.',
  lower_bound=0,
)
flags.DEFINE_boolean('skip_evals', False, 'Train only.')
flags.DEFINE_boolean('torch_compile', False, 'Compile the model.')
flags.DEFINE_boolean(
  'profile',
  False,
  'Wait for the device around each section and print where the time went.',
)
flags.DEFINE_integer(
  'eval_every_steps',
  None,
  "Steps between evaluations; by default the workload's own. There is always "
  'one after the last step.',
  lower_bound=1,
)
flags.DEFINE_boolean(
  'run_to_budget',
  False,
  'Run on after the targets are reached, so that whole curves can be compared.',
)
flags.DEFINE_integer(
  'save_every',
  None,
  'Steps between light checkpoints: the raw weights alone, in weights/, for '
  'lab.offline.',
  lower_bound=1,
)
flags.DEFINE_integer(
  'keep',
  None,
  'Number of light checkpoints, and of steps with post-hoc snapshots, that are '
  'kept, the latest ones; by default all.',
  lower_bound=1,
)
flags.DEFINE_integer(
  'posthoc_every',
  None,
  'Steps between snapshots of two averages over all steps, in posthoc/, from '
  'which lab.offline average --scheme posthoc reconstructs others; it takes '
  'twice the memory of the weights on rank 0.',
  lower_bound=1,
)

REQUIRED = ('workload', 'submission_path', 'experiment_dir', 'experiment_name')


def settings() -> Settings:
  """The parsed command line."""
  values: dict[str, Any] = {
    field.name: flags.FLAGS[field.name].value
    for field in dataclasses.fields(Settings)
  }
  if values['keep'] and not (values['save_every'] or values['posthoc_every']):
    raise InputError(
      'Invalid flags: --keep needs --save_every or --posthoc_every.'
    )
  return Settings(**values)
