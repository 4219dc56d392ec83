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

from benchmarks.gpu import processes
from benchmarks.gpu.sections import read_rows
from benchmarks.gpu.setting import Attempts, Rows, Setting
from benchmarks.gpu.trainer import ROOT
from lab.core import logs

# One machine: no name of it has to be resolved.
_LOCAL = {'NCCL_SOCKET_IFNAME': 'lo', 'GLOO_SOCKET_IFNAME': 'lo'}


# Seconds of one part, about half of the section's limit: a backend that hangs
# leaves time for the others.
_LIMIT = 60.0


def torchrun(count: int, *arguments: str, timeout: float) -> None:
  """Run a module with its arguments on several ranks of this machine.

  Args:
    count: number of ranks.
    *arguments: name of the module, then what it is given.
    timeout: seconds after which all ranks are ended.

  Raises:
    RuntimeError: with the end of its output, if a rank failed or hung.
  """
  command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
  command += ['--local_addr=127.0.0.1', f'--nproc_per_node={count}']
  command += ['-m', *arguments]
  with tempfile.TemporaryFile('w+', encoding='utf-8') as output:
    process = subprocess.Popen(
      command,
      cwd=ROOT,
      env=_LOCAL | dict(os.environ),
      stdout=output,
      stderr=subprocess.STDOUT,
    )
    try:
      status = process.wait(timeout)
      how = f'ended with {status}'
    except subprocess.TimeoutExpired:
      status, how = None, f'did not end in {timeout:.0f} s'
    finally:
      processes.end(process.pid)
      process.wait()
    if status != 0:
      output.seek(0)
      print(output.read()[-6000:], file=sys.stderr)
      raise RuntimeError(f'{arguments[0]} {how}.')


def measure(setting: Setting) -> Rows:
  """Rows of the ranks, then of a run of the laboratory."""
  backends = setting.pick({'nccl': 1, 'gloo': 2}, {'gloo': 2})
  attempts = Attempts()
  for backend, count in backends.items():
    label = f'{backend}, {count} ranks'
    with attempts.one(label):
      for name, values in _ranks(backend, count, setting):
        yield f'{label}/{name}', values
  with attempts.one('lab.run'):
    yield from laboratory(setting)
  attempts.check()


def _ranks(backend: str, count: int, setting: Setting) -> Rows:
  """Rows of `benchmarks.gpu.ranks`; those before a failure count."""
  with tempfile.TemporaryDirectory() as folder:
    rows = pathlib.Path(folder) / 'rows.jsonl'
    arguments = ['--backend', backend, '--rows', str(rows)]
    arguments += ['--smoke'] if setting.smoke else []
    error: RuntimeError | None = None
    try:
      torchrun(
        count,
        'benchmarks.gpu.ranks',
        *arguments,
        timeout=setting.pick(_LIMIT, 600.0),
      )
    except RuntimeError as failure:
      error = failure
    yield from read_rows(rows).items()
    if error is not None:
      raise error


def laboratory(setting: Setting) -> Rows:
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
      timeout=_LIMIT,
    )
    (path,) = pathlib.Path(folder).rglob(logs.EVAL_MEASUREMENTS)
    for row in logs.Table(str(path)).rows:
      yield (
        f'lab.run on stdlib_lm, nccl, sharded/step {row["global_step"]}',
        {'validation_loss': float(row['validation/loss'])},
      )
