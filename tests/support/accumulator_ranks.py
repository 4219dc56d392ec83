"""Two ranks with post-hoc accumulators: undisturbed, killed and resumed."""

import os
import sys

import fakes

from lab.offline import run_accumulators
from lab.run import runner
from lab.run.distributed import Context
from lab.run.trial import TrialRun


def whole_and_cut(rank, folder, path, every):
  """Run twice, the second time with a kill of both ranks after step 8."""
  os.chdir(folder)
  sys.path.insert(0, str(folder))
  fakes.register()
  if rank:
    # Whoever makes accumulators here, or writes, is found out.
    del run_accumulators.RunAccumulators

  def run(name, **changes):
    given = fakes.settings(
      folder,
      experiment_name=name,
      submission_path=path,
      posthoc_every=every,
      **changes,
    )
    runner.run(given, Context(rank, 2), {})

  run('whole')
  update = TrialRun._update

  def dying(trial, *arguments):
    update(trial, *arguments)
    if trial.state.global_step == 8:
      raise fakes.Killed

  TrialRun._update = dying
  try:
    run('cut')
  except fakes.Killed:
    TrialRun._update = update
  run('cut', resume_last_run=True)
