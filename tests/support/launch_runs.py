"""Plans, files and left-overs of runs, for tests of the launcher."""

import csv
import pathlib
import zipfile

from lab.launch import (
  jobs,
  launch_plan,
  launcher,
)
from lab.launch.launch_plan import Run

ROOT = pathlib.Path(__file__).parents[2]

LOCAL = ['--submissions=nadamw_ema', '--workloads=click_dlrm']

RUN = Run('nadamw_ema', 'click_dlrm', study=0, trial=1)


def parse(tmp_path, *arguments):
  words = [f'--experiment_dir={tmp_path / "runs"}', *arguments]
  return launcher.parse(words)


def plan_of(tmp_path, *arguments):
  return parse(tmp_path, *(arguments or LOCAL))[1]


def files_of(tmp_path):
  return jobs.Files(tmp_path / 'runs_jobs')


def words_of(tmp_path, *arguments, rendezvous=None):
  _, plan, runs = parse(tmp_path, *arguments)
  return launch_plan.command(plan, runs[0], rendezvous=rendezvous)


def write_rows(path, steps):
  with open(path, 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['score', 'global_step', 'loss'])
    writer.writerows([[10 * step, step, 'a,b'] for step in steps])


def write_end(plan, run, score='12.5'):
  """The logs that a finished run leaves."""
  directory = plan.directory(run)
  directory.mkdir(parents=True, exist_ok=True)
  rows = [
    {'global_step': '2', 'loss': '1.0', 'score': '', 'total_duration': ''},
    {'global_step': '5', 'loss': '', 'score': '9', 'total_duration': '10'},
    {'global_step': '5', 'loss': '', 'score': score, 'total_duration': ''},
  ]
  for name, chosen in (
    ('measurements.csv', rows),
    ('eval_measurements.csv', rows[1:2]),
  ):
    with open(directory / name, 'w', newline='') as file:
      writer = csv.DictWriter(file, list(rows[0]))
      writer.writeheader()
      writer.writerows(chosen)


def write_checkpoint(plan, run, step, whole=True):
  directory = plan.directory(run)
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / f'checkpoint_{step}'
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('data', 'x' * 1000)
  if not whole:
    path.write_bytes(path.read_bytes()[:-200])
  return path


def scripted(monkeypatch, text, seen=None):
  """Make every run a line of Python."""

  def command(plan, run, resume=False, rendezvous=None):
    if seen is not None:
      seen.append((run, resume))
    return ['python', '-c', text, str(plan.directory(run))]

  monkeypatch.setattr(launch_plan, 'command', command)
