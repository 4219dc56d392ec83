"""docs/extending.md, followed word for word in a copy of the repository.

The code blocks with a title become files; the commands run in their order.
"""

import csv
import os
import re
import subprocess
import sys

import pytest
from pages import ROOT, all_blocks, copy_repository, words_of

# A dozen processes that import torch.
pytestmark = pytest.mark.slow
PAGE = ROOT / 'docs' / 'extending.md'


def add(path, line):
  """Insert a line of code below the last one with the same comment."""
  text = path.read_text()
  comment = line[line.index('#') :]
  end = text.rindex(comment) + len(comment)
  path.write_text(text[:end] + line + text[end:])


def run(words, folder):
  """Run a command of the page in the copy."""
  assert words[:2] == ['python', '-m'], words
  environment = os.environ | {'OMP_NUM_THREADS': '1'}
  done = subprocess.run(
    [sys.executable, *words[1:]],
    cwd=folder, env=environment, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, f'{words}\n{done.stdout}\n{done.stderr}'
  return done.stdout


@pytest.fixture(scope='module')
def followed(tmp_path_factory):
  """The copy after all of the page, and the outputs of its commands."""
  folder = tmp_path_factory.mktemp('copy')
  copy_repository(folder)
  outputs = []
  for block in all_blocks(PAGE):
    title, action = (block.attributes.get(k) for k in ('title', 'action'))
    if action is not None:
      assert action == 'add'
      add(folder / title, block.content)
    elif title is not None:
      assert not (folder / title).exists(), title
      (folder / title).parent.mkdir(parents=True, exist_ok=True)
      (folder / title).write_text(block.content)
    else:
      outputs += [run(words, folder) for words in words_of(block.content)]
  return folder, outputs


@pytest.mark.parametrize(
  ('name', 'workload'),
  [
    ('averager', 'click_dlrm'),
    ('optimizer', 'click_dlrm'),
    ('workload', 'sine_mlp'),
  ],
)
def test_each_trains_twenty_steps(name, workload, followed):
  folder, _ = followed
  trial = folder / 'runs' / name / f'{workload}_pytorch' / 'trial_1'
  with open(trial / 'eval_measurements.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert int(rows[-1]['global_step']) == 20
  assert float(rows[-1]['validation/loss']) > 0


def test_the_study_prints_its_table(followed):
  folder, outputs = followed
  assert (folder / 'results' / 'momentum' / 'momentum.json').exists()
  assert re.search(r'\| *beta1 *\| *raw *\| *ema 1 % *\|', outputs[-1])


def test_the_files_of_the_page_pass_the_linter(followed):
  folder, _ = followed
  titles = [b.attributes.get('title', '') for b in all_blocks(PAGE)]
  files = sorted({title for title in titles if title.endswith('.py')})
  assert len(files) == 11
  for command in (['check'], ['format', '--check']):
    done = subprocess.run(
      [sys.executable, '-m', 'ruff', *command, *files],
      cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
