"""Runs that are killed at random moments lose nothing but time.

Real processes of the local runner are killed by SIGKILL and resumed. What they
leave equals what an undisturbed run leaves: weights, averages, the optimizer's
state, measurements, light checkpoints.
"""

import io
import itertools
import json
import os
import random
import shutil
import time
import zlib

import fault_runs
import pytest
import torch
from fault_runs import Case

SHORT_KILLS = 20
LONG_KILLS = 200
MOMENTS = (*fault_runs.PHASES, 'by the clock')
long_form = pytest.mark.faults


def cases():
  """Every submission in the folder with every placement."""
  found = []
  for name in fault_runs.submissions():
    for placement in fault_runs.placements(name):
      number = len(found)
      is_jax = name.endswith('_jax')
      found.append(
        Case(
          name,
          placement,
          keeps_all=number % 2 == 0,
          light=number % 3 == 0 and not is_jax,
        )
      )
  return found


def short_cases():
  """Every submission in PyTorch once, all placements among them."""
  by_name = {}
  for case in cases():
    by_name.setdefault(case.submission, []).append(case)
  # Each process compiles the programs of JAX anew, which takes long.
  pytorch = [v for k, v in by_name.items() if not k.endswith('_jax')]
  return [own[i % len(own)] for i, own in enumerate(pytorch)]


def share(total, number, parts):
  """Size of a part when `total` is divided evenly."""
  return total * (number + 1) // parts - total * number // parts


SHORT, LONG = short_cases(), cases()
PARAMETERS = [
  pytest.param(
    c,
    share(SHORT_KILLS, i, len(SHORT)),
    id=f'short-{c.name}',
    marks=[pytest.mark.slow] * (i % 2),
  )
  for i, c in enumerate(SHORT)
] + [
  pytest.param(
    c, share(LONG_KILLS, i, len(LONG)), id=f'long-{c.name}', marks=long_form
  )
  for i, c in enumerate(LONG)
]


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  return fault_runs.Server(tmp_path_factory.mktemp('said'))


def killed(server, arguments, moment, windows, seconds, rng):
  """Start a run and kill it; whether the kill came before its end."""
  if moment == 'by the clock':
    process = server.start(arguments)
    time.sleep(rng.uniform(0, seconds))
    process.kill()
  else:
    first, last = rng.choice(windows[moment] or windows['anywhere'])
    process = server.start(arguments, kill_at=rng.randint(first, last))
  process.join()
  assert process.exitcode in (-9, 0), process.said.read_text()
  return process.exitcode == -9


@pytest.mark.parametrize(('case', 'kills'), PARAMETERS)
def test_a_killed_run_loses_nothing(case, kills, server, tmp_path, tally):
  # The same moments on every machine and in every process.
  rng = random.Random(zlib.crc32(f'{case.name} {kills}'.encode()))
  whole = tmp_path / 'whole'
  watch = tmp_path / 'windows.json'
  started = time.monotonic()
  status, said = server.run(case.arguments(whole), watch=str(watch))
  # A run without the watch takes half of the time.
  seconds = 0.5 * (time.monotonic() - started)
  assert status == 0, said
  windows = json.loads(watch.read_text())
  moments = itertools.cycle(rng.sample(MOMENTS, len(MOMENTS)))
  done, attempts = 0, 0
  while done < kills:
    attempts += 1
    assert attempts < 3 * kills + 5, 'kills come after the end'
    cut = tmp_path / f'cut_{attempts}'
    arguments = case.arguments(cut)
    # Some runs are killed again when they have been resumed.
    for _ in range(rng.choice((1, 1, 2))):
      moment = next(moments)
      if killed(server, arguments, moment, windows, seconds, rng):
        done += 1
        tally.add('kills', moment)
      arguments = fault_runs.resumed(case, cut)
    status, said = server.run(arguments)
    tally.check([] if status == 0 else [said])
    tally.check(fault_runs.losses(case, whole, cut))
    shutil.rmtree(cut)


def test_the_check_sees_a_difference(server, tmp_path):
  """The comparison fails where a single bit or row differs."""
  case = Case('nadamw_lawa', 'device', light=True)
  for name in ('whole', 'cut'):
    status, said = server.run(case.arguments(tmp_path / name))
    assert status == 0, said
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  assert fault_runs.losses(case, whole, cut) == []
  trial = case.trial(cut)
  checkpoint = trial / 'checkpoint_10'
  loaded = torch.load(checkpoint, weights_only=True)
  weight = loaded['optimizer_state']['averager']['buffers'][0]['hidden.weight']
  weight.view(torch.int32)[0, 0] ^= 1
  changed = io.BytesIO()
  torch.save(loaded, changed)
  csv = (trial / 'measurements.csv').read_bytes()
  weights = (trial / 'weights/step_18.safetensors').read_bytes()
  for name, change in (
    ('checkpoint_10', changed.getvalue()),
    ('measurements.csv', csv.rpartition(b'\n20,')[0] + b'\n'),
    ('weights/step_18.safetensors', weights[:-1] + bytes([weights[-1] ^ 1])),
  ):
    path = trial / name
    before = path.read_bytes()
    assert change != before
    path.write_bytes(change)
    assert any(name in loss for loss in fault_runs.losses(case, whole, cut))
    path.write_bytes(before)
  os.remove(trial / 'checkpoint_5')
  assert fault_runs.losses(case, whole, cut) != []
