"""The study's search spaces: generated, complete, and read by submissions."""

import json
import pathlib
import subprocess
import sys

import pytest

from lab.core import search_space
from lab.launch import sweeps
from weightavg.pytorch.build_nadamw import NADAMW
from weightavg.pytorch.build_shampoo import SHAMPOO
from weightavg.schemes import SCHEMES, Ema, Lawa
from weightavg.submission_config import SubmissionConfig

FILES = sorted(path.name for path in sweeps.STUDY.glob('*'))


def configs(name):
  """The configurations of a file's points, and the submission's scheme."""
  submission, _, _ = name.partition('-')
  scheme = sweeps.SUBMISSIONS[submission]
  optimizer = NADAMW if submission.startswith('nadamw') else SHAMPOO
  points = json.loads((sweeps.STUDY / name).read_text())
  return [
    SubmissionConfig.from_point(p, optimizer, SCHEMES[scheme]) for p in points
  ]


def test_committed_files_are_the_generated_ones(tmp_path):
  sweeps.main(['--output', str(tmp_path)])
  assert sorted(path.name for path in tmp_path.iterdir()) == FILES
  for name in FILES:
    committed = (sweeps.STUDY / name).read_text()
    assert (tmp_path / name).read_text() == committed, (
      'python -m lab.launch.sweeps'
    )


@pytest.mark.parametrize('name', FILES)
def test_every_point_is_one_that_the_submission_takes(name):
  path = str(sweeps.STUDY / name)
  # As the runners read it: equal keys, in one order, no two points alike.
  points = search_space.load(path, count=1000, seed=0)
  assert len(configs(name)) == len(points)
  assert len({tuple(point) for point in points}) == 1
  assert len({json.dumps(point) for point in points}) == len(points)


def test_cadences_and_lengths_are_those_of_the_paper():
  expected = [
    (steps, Lawa(window))
    for steps in (32, 64, 128, 256, 512, 1024, 2048)
    for window in (2, 5, 10, 20, 50)
  ]
  for optimizer in ('nadamw', 'shampoo'):
    resolved = [
      config.averaging.resolve(100_000)
      for config in configs(f'{optimizer}_lawa-cadence.json')
    ]
    assert [(s.every, scheme) for s, scheme in resolved] == expected


def test_horizons_are_taken_every_fifth_of_a_percent():
  resolved = [
    config.averaging.resolve(10_000)
    for config in configs('nadamw_ema-horizon.json')
  ]
  assert {sampling.every for sampling, _ in resolved} == {20}
  decays = (0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
  assert [scheme for _, scheme in resolved] == [Ema(d) for d in decays]


def test_budgets_shorten_the_run_or_only_the_schedule():
  quarters = [0.25, 0.5, 0.75, 1.0]
  whole = configs('nadamw_ema-budget.json')
  assert [c.schedule.budget(1000) for c in whole] == [250, 500, 750, 1000]
  short = configs('nadamw_ema-short_schedule.json')
  assert [c.schedule.schedule_factor for c in short] == quarters
  assert {c.schedule.budget(1000) for c in short} == {1000}


def test_schedules_and_rates_surround_the_published_points():
  published = {
    'nadamw': 0.0017486387539278373,
    'shampoo': 0.0017486387539278373,
  }
  for optimizer, rate in published.items():
    rates = [
      config.optimizer.learning_rate
      for config in configs(f'{optimizer}-learning_rate.json')
    ]
    assert rates == [rate * 2.0**k for k in range(-3, 4)]
    schedules = [
      config.schedule.schedule
      for config in configs(f'{optimizer}-schedule.json')
    ]
    assert schedules == ['cosine', 'cosine_to_half', 'constant']


def test_an_output_that_is_a_file_ends_in_one_line(tmp_path):
  path = tmp_path / 'file'
  path.write_text('kept')
  result = subprocess.run(
    [sys.executable, '-m', 'lab.launch.sweeps', '--output', str(path)],
    cwd=pathlib.Path(__file__).parents[3],
    capture_output=True,
    text=True,
  )
  assert result.returncode == 1
  assert result.stderr.splitlines() == [
    f'error: Cannot write to {path}: {path} is not a writable directory.'
  ]
  assert path.read_text() == 'kept'
