"""The settings of a run, as the command line gives them."""

import dataclasses
import os


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """One field per flag of `lab.run`, of the same name and meaning."""

  workload: str
  submission_path: str
  experiment_dir: str
  experiment_name: str
  framework: str = 'pytorch'
  tuning_ruleset: str = 'external'
  tuning_search_space: str | None = None
  num_tuning_trials: int = 1
  hparam_start_index: int | None = None
  hparam_end_index: int | None = None
  rng_seed: int | None = None
  max_global_steps: int | None = None
  eval_every_steps: int | None = None
  run_to_budget: bool = False
  skip_evals: bool = False
  save_checkpoints: bool = True
  save_intermediate_checkpoints: bool = True
  resume_last_run: bool = False
  overwrite: bool = False
  append_timestamp: bool = False
  torch_compile: bool = False
  profile: bool = False
  save_every: int | None = None
  keep: int | None = None
  posthoc_every: int | None = None

  @property
  def log_dir(self) -> str:
    """Directory of this experiment on this workload."""
    return os.path.join(
      os.path.expanduser(self.experiment_dir),
      self.experiment_name,
      f'{self.workload}_{self.framework}',
    )

  @property
  def takes_some_trials(self) -> bool:
    """True if the command line picks trials by their index."""
    indices = (self.hparam_start_index, self.hparam_end_index)
    return self.tuning_ruleset == 'external' and indices != (None, None)

  def includes_trial(self, number: int) -> bool:
    """Tell if a trial, counted from 1, is among those to be run."""
    if not self.takes_some_trials:
      return True
    first, end = self.hparam_start_index or 0, self.hparam_end_index
    return number > first and (end is None or number <= end)

  def trial_dir(self, number: int) -> str:
    """Directory of a trial, counted from 1."""
    return os.path.join(self.log_dir, f'trial_{number}')
