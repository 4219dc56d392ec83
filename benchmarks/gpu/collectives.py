"""One NCCL rank by torchrun, and two gloo ranks that share the GPU.

NCCL takes one rank on each GPU. What happens between ranks is tried with gloo,
whose messages pass through host memory: its results count, its times do not.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from benchmarks.gpu.setting import Rows, Setting
from benchmarks.gpu.trainer import ROOT
from lab.core import logs

# One machine: no name of it has to be resolved.
_LOCAL = {'NCCL_SOCKET_IFNAME': 'lo', 'GLOO_SOCKET_IFNAME': 'lo'}


def torchrun(processes: int, *arguments: str, timeout: float = 150) -> None:
  """Run a module with its arguments on several ranks of this machine.

  Raises:
    RuntimeError: with the end of its output, if a rank failed.
  """
  command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
  command += [f'--nproc_per_node={processes}', '-m', *arguments]
  finished = subprocess.run(
    command,
    cwd=ROOT,
    env=_LOCAL | dict(os.environ),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=timeout,
    check=False,
  )
  if finished.returncode:
    print(finished.stdout[-6000:], file=sys.stderr)
    raise RuntimeError(f'{arguments[0]} ended with {finished.returncode}.')


def measure(setting: Setting) -> Rows:
  """Rows of the ranks, then of a run of the laboratory."""
  backends = setting.pick({'nccl': 1, 'gloo': 2}, {'gloo': 2})
  for backend, processes in backends.items():
    with tempfile.TemporaryDirectory() as folder:
      rows = pathlib.Path(folder) / 'rows.jsonl'
      arguments = ['--backend', backend, '--rows', str(rows)]
      arguments += ['--smoke'] if setting.smoke else []
      try:
        torchrun(processes, 'benchmarks.gpu.ranks', *arguments)
      finally:
        known = rows.read_text().splitlines() if rows.exists() else []
      for line in known:
        name, values = json.loads(line)
        yield f'{backend}, {processes} ranks/{name}', values
  yield from _laboratory(setting)


def _laboratory(setting: Setting) -> Rows:
  """The laboratory's runner under torchrun with a sharded average."""
  if setting.smoke:
    return
  space = json.loads(
    (ROOT / 'tuning_search_spaces/nadamw_ema.json').read_text()
  )
  with tempfile.TemporaryDirectory() as folder:
    points = pathlib.Path(folder, 'points.json')
    points.write_text(
      json.dumps([space[-1] | {'averaging_placement': 'sharded'}])
    )
    torchrun(
      1,
      'lab.run',
      '--workload=stdlib_lm',
      '--submission_path=submissions/nadamw_ema/submission.py',
      f'--tuning_search_space={points}',
      f'--experiment_dir={folder}/runs',
      '--experiment_name=gpu',
      '--rng_seed=0',
      '--max_global_steps=100',
      '--eval_every_steps=50',
    )
    (path,) = pathlib.Path(folder).rglob(logs.EVAL_MEASUREMENTS)
    for row in logs.Table(str(path)).rows:
      yield (
        f'lab.run on stdlib_lm, nccl, sharded/step {row["global_step"]}',
        {'validation_loss': float(row['validation/loss'])},
      )
