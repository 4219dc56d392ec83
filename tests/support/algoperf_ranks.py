"""Run two ranks on the real benchmark's checkpoints.

Importing this module imports neither algoperf nor TensorFlow; calls do.
"""

import pathlib

import algoperf_support as support
import torch
from algoperf_batches import make_batch
from algoperf_support import quiet_import

# Workload, whether the model is compiled, what the points say beside their own.
SCENARIOS = (
  ('mnist', False, {}),
  # BatchNorm: the wrapper broadcasts its statistics in every step.
  ('cifar', False, {}),
  # The benchmark does not unwrap a compiled model.
  ('mnist', True, {}),
  ('mnist', False, {'averaging_placement': 'cpu'}),
  ('mnist', False, {'averaging_placement': 'sharded'}),
  ('mnist', True, {'averaging_placement': 'sharded'}),
  ('mnist', False, {'averaging_swap': 'copy'}),
)


def two_ranks(rank, folder):
  """One of two ranks, in every scenario, since starting them is what costs."""
  for index, (workload, compiled, changes) in enumerate(SCENARIOS):
    for submission in support.SUBMISSIONS:
      scheme = support.averages_by(submission)
      if changes and scheme == 'none':
        continue
      if (
        'averaging_placement' in changes and scheme in support.TRAINS_AT_AVERAGE
      ):
        continue  # Refused: each step reads and writes the average.
      path = pathlib.Path(folder, f'{index}_{submission}')
      if rank == 0:
        path.mkdir()
      point = support.hyperparameters(submission, **changes)
      try:
        _undisturbed_and_resumed(
          rank, path, submission, workload, point, compiled
        )
      except Exception as error:
        error.add_note(f'{submission}: {SCENARIOS[index]}')
        raise
  path = pathlib.Path(folder, 'conformer')
  if rank == 0:
    path.mkdir()
  _conformer(rank, path)


def _conformer(rank, folder):
  """Its evaluation averages the model over the ranks, statistics too."""
  module = quiet_import(
    'algoperf.workloads.librispeech_conformer.librispeech_pytorch.workload'
  )

  def synchronise(run):
    # Off a GPU the benchmark counts no devices.
    module.N_GPUS = 2
    run.workload.sync_sd(run.model)
    module.N_GPUS = 0

  for submission in ('nadamw_ema', 'nadamw_primal', 'shampoo_lawa'):
    path = folder / submission
    if rank == 0:
      path.mkdir()
    _undisturbed_and_resumed(
      rank,
      path,
      submission,
      'librispeech_conformer',
      support.hyperparameters(submission),
      evaluation=synchronise,
    )


def _undisturbed_and_resumed(
  rank,
  folder,
  submission,
  workload,
  point,
  compiled=False,
  evaluation=None,
):
  dist = torch.distributed

  def wrap(model):
    model = torch.nn.parallel.DistributedDataParallel(model)
    return torch.compile(model, backend='eager') if compiled else model

  def start(seed):
    batches = [make_batch(workload, seed=10 * rank + step) for step in range(5)]
    if rank == 1 and batches[1].get('weights') is not None:
      # A rank whose part of the batch is all padding.
      batches[1]['weights'] = torch.zeros_like(batches[1]['weights'])
    return support.Run(
      support.load_submission(submission),
      support.make_workload(workload),
      point,
      batches,
      seed=seed,
      wrap=wrap,
    )

  def agree(run):
    """Fingerprints of parameters, the same on both ranks."""
    found = support.fingerprint(run.model)
    names = {support.clean(name) for name, _ in run.model.named_parameters()}
    mine = {name: found[name] for name in names}
    everyone = [None, None]
    dist.all_gather_object(everyone, mine)
    assert everyone[0] == everyone[1]
    return mine

  run = start(seed=0)
  for _ in range(3):
    run.step()
  run.prepare_for_eval()
  run.evaluate()
  if evaluation is not None:
    evaluation(run)
  averaged = agree(run)
  if rank == 0:
    # The other rank does not wait, as in the benchmark.
    run.save(folder)
  run.step()
  run.step()
  raw = agree(run)
  run.prepare_for_eval()
  last = agree(run)
  assert (last == raw) == (support.shown_by(submission, run.state)[0] == 'none')

  dist.barrier()
  again = start(seed=7)
  assert again.restore(folder) == 1
  wrapper = torch.nn.parallel.DistributedDataParallel
  assert not isinstance(again.model, wrapper)
  assert agree(again) == averaged
  again.step()
  again.step()
  assert agree(again) == raw
  again.prepare_for_eval()
  assert agree(again) == last
