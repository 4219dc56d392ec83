"""Signals to real runs, and ranks under torchrun that are killed."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import zlib

import fakes
import fault_runs
import psutil
import pytest
from fault_runs import Case

from lab.core import checkpoint_files
from lab.run import experiment_lock

long_form = pytest.mark.faults
SUPPORT = pathlib.Path(fault_runs.__file__).parent
PYTORCH = [n for n in fault_runs.submissions() if not n.endswith('_jax')]


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  return fault_runs.Server(tmp_path_factory.mktemp('said'))


@pytest.mark.parametrize(
  ('case', 'times'),
  [
    pytest.param(Case('shampoo_lawa', 'cpu', light=True), 2, id='short'),
    *(
      pytest.param(
        Case(name, fault_runs.placements(name)[-1]),
        4,
        id=name,
        marks=long_form,
      )
      for name in fault_runs.submissions()
    ),
  ],
)
def test_a_signal_saves_and_the_status_says_so(
  case, times, server, tmp_path, tally
):
  """The run ends with status 75, and goes on from that very step."""
  rng = random.Random(zlib.crc32(case.name.encode()))
  whole, watch = tmp_path / 'whole', tmp_path / 'windows.json'
  status, said = server.run(case.arguments(whole), watch=str(watch))
  assert status == 0, said
  began = (case.trial(whole) / 'flags_0.json').stat().st_mtime
  duration = time.time() - began
  for number in range(times):
    cut = tmp_path / f'cut_{number}'
    process = server.start(case.arguments(cut))
    trial = case.trial(cut)
    # The run has begun when it has written its flags.
    while process.is_alive() and not (trial / 'flags_0.json').exists():
      time.sleep(0.01)
    time.sleep(rng.uniform(0, duration / 2))
    sent = (signal.SIGTERM, signal.SIGUSR1)[number % 2]
    # This run may be quicker than the undisturbed one.
    with contextlib.suppress(ProcessLookupError):
      os.kill(process.pid, sent)
    process.join()
    said = process.said.read_text()
    steps = checkpoint_files.steps(str(trial))
    # It came after the last step, or when the run no longer listened.
    if process.exitcode == 0 or 'Ended at step 20 ' in said:
      continue
    if not steps:  # before the first step
      assert process.exitcode == 128 + sent, said
      continue
    assert process.exitcode == os.EX_TEMPFAIL, said
    assert f'Stopped by {sent.name} at step {steps[-1]}. ' in said
    status, said = server.run(case.arguments(cut, '--resume_last_run'))
    assert status == 0, said
    # The undisturbed run has no checkpoint at the step of the signal.
    if steps[-1] % 5:
      os.remove(trial / f'checkpoint_{steps[-1]}')
    tally.check(fault_runs.losses(case, whole, cut))
    tally.add('signals', sent.name)


def torchrun(folder, arguments, *options):
  """Start two ranks of the tiny workload; the process of torchrun."""
  command = [
    *(sys.executable, '-m', 'torch.distributed.run', '--standalone'),
    *('--nproc_per_node=2', *options, str(SUPPORT / 'fault_ranks.py')),
    *arguments,
  ]
  with open(folder / 'errors', 'w') as errors:
    return subprocess.Popen(
      command,
      env=fakes.environment(),
      stdout=subprocess.DEVNULL,
      stderr=errors,
    )


def ranks_of(process):
  """The processes that train, by rank."""
  found = {}
  for child in psutil.Process(process.pid).children():
    words = child.cmdline()
    if any(word.endswith('fault_ranks.py') for word in words):
      found[int(child.environ()['RANK'])] = child
  return found


def kill_a_rank(process, rank, trial, at_step):
  """SIGKILL one rank once the checkpoint of a step exists."""
  while at_step not in checkpoint_files.steps(str(trial)):
    assert process.poll() is None
    time.sleep(0.05)
  ranks_of(process)[rank].kill()


@pytest.mark.parametrize(
  ('case', 'rank', 'restarts'),
  [
    pytest.param(
      Case(name, fault_runs.placements(name)[-1]),
      number % 2,
      number // 2 % 2,
      id=name,
      marks=long_form,
    )
    for number, name in enumerate(PYTORCH)
  ],
)
def test_one_of_two_ranks_is_killed(case, rank, restarts, tmp_path, tally):
  """The job ends with a message, or goes on by itself, and loses nothing."""
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  undisturbed = torchrun(tmp_path, case.arguments(whole))
  undisturbed.wait()
  assert undisturbed.returncode == 0, (tmp_path / 'errors').read_text()
  options = [f'--max-restarts={restarts}']
  process = torchrun(tmp_path, case.arguments(cut), *options)
  kill_a_rank(process, rank, case.trial(cut), at_step=10)
  process.wait(timeout=600)
  errors = (tmp_path / 'errors').read_text()
  if restarts:
    assert process.returncode == 0, errors
  else:
    assert process.returncode != 0
    assert 'Signal 9 (SIGKILL)' in errors
    process = torchrun(tmp_path, case.arguments(cut, '--resume_last_run'))
    process.wait()
    assert process.returncode == 0, (tmp_path / 'errors').read_text()
  tally.add('kills', 'one of two ranks')
  tally.check(fault_runs.losses(case, whole, cut))
  lock = experiment_lock.path_of(str(case.trial(cut).parent))
  assert pathlib.Path(lock).read_text() == ''
