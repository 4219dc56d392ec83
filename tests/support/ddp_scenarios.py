"""Run by torchrun from test_runner_ddp.py: many runs in one process group.

`ddp_scenarios.py FOLDER SUBMISSION...` writes what each rank holds after each
run to FOLDER/<submission>_<run>_<rank>.pt.
"""

import json
import os
import pathlib
import sys

import fakes
import torch

from lab.core.errors import InputError
from lab.run import checkpoints, distributed
from lab.run.trial import TrialRun

ROOT = pathlib.Path(__file__).resolve().parents[2]
# In which method, and at which step, all ranks are killed.
CUTS = {
  'update': ('_update', 8),
  'prepare': ('_prepare_for_eval', 10),
  'evaluation': ('_evaluate', 10),
  'after_evaluation': ('_update', 10),
}


def cuts_of(name):
  """All for the fake submission, the two that differ most for the others."""
  return [*CUTS] if name == 'fake' else ['update', 'after_evaluation']


def kill_in(method, step):
  """Make a method of a run end it; returns what undoes that."""
  original = getattr(TrialRun, method)

  def dying(run, *args):
    if run.state.global_step == step:
      raise fakes.Killed
    original(run, *args)

  setattr(TrialRun, method, dying)
  return lambda: setattr(TrialRun, method, original)


def prepare(folder, name, context):
  """Settings of a submission; the working directory is where its path is."""
  workload, root = 'click_dlrm', ROOT
  if name == 'fake':
    workload, root, points = fakes.NAME, folder, fakes.POINTS
    path = 'fake_package/submission.py'
  else:
    published = ROOT / 'tuning_search_spaces' / f'{name}.json'
    path = f'submissions/{name}/submission.py'
    points = [json.loads(published.read_text())[0] | {'dropout_rate': 0.2}]
  os.chdir(root)
  fakes.register(None, workload)
  space = folder / f'{name}.json'
  if context.is_main:
    space.write_text(json.dumps(points))
  context.barrier()
  return {
    'submission_path': path,
    'workload': workload,
    'tuning_search_space': str(space),
    'experiment_dir': str(folder / 'runs' / name),
  }


def count_saves():
  """Count how often this rank writes a checkpoint, in a list."""
  save, saves = checkpoints.save, []

  def counting(state, *args, **kwargs):
    saves.append(state.global_step)
    return save(state, *args, **kwargs)

  checkpoints.save = counting
  return saves


def run(folder, name, context, experiment, **options):
  """Run and write down what this rank holds then."""
  state = fakes.run(folder, context, experiment_name=experiment, **options)
  content = {
    'model': checkpoints.unwrapped(state.model_params).state_dict(),
    'evaluations': [
      (step, {k: v for k, v in metrics.items() if '/' in k})
      for step, metrics in state.eval_results
    ],
  }
  torch.save(content, folder / f'{name}_{experiment}_{context.rank}.pt')


def main(folder, *names):
  """Each submission undisturbed, and cut and resumed at each moment."""
  context = distributed.start()
  folder = pathlib.Path(folder)
  saves = count_saves()
  for name in names:
    options = prepare(folder, name, context)
    run(folder, name, context, 'whole', **options)
    for experiment in cuts_of(name):
      method, step = CUTS[experiment]
      undo = kill_in(method, step)
      try:
        run(folder, name, context, experiment, **options)
      except fakes.Killed:
        undo()
      options['resume_last_run'] = True
      run(folder, name, context, experiment, **options)
      del options['resume_last_run']
  # One rank alone finds fault with the input: none may wait for it.
  message = 'no error'
  try:
    context.agree(InputError('of rank 1') if context.rank == 1 else None)
  except InputError as error:
    message = str(error)
  (folder / f'error_{context.rank}').write_text(message)
  (folder / f'saves_{context.rank}').write_text(str(len(saves)))
  distributed.stop()


if __name__ == '__main__':
  main(*sys.argv[1:])
