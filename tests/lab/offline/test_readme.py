"""The commands of README's section on offline averages, as they stand there.

Replaced are the interpreter (this one), directories, and counts of steps.
"""

import pathlib
import re
import shlex

import pytest
from absl import flags
from absl.testing import flagsaver
from safetensors import safe_open

import lab.run.flags
from lab.offline.__main__ import main
from lab.run import runner
from lab.run.distributed import Context
from lab.workloads import click_dlrm, glyph_resnet

ROOT = pathlib.Path(__file__).parents[3]
SECTION = 'Average what you already have'
TRIAL = 'runs/x/glyph_resnet_pytorch/trial_1'
# Counts of steps, as the README has them, and for a run of ten steps.
STEPS = {
  '--save_every=10': '--save_every=5',
  '--posthoc_every=100': '--posthoc_every=2',
  '3000,4000': '8,10',
}


def commands():
  """Words of each command of the section."""
  text = (ROOT / 'README.md').read_text()
  section = text.split(f'\n## {SECTION}\n')[1].split('\n## ')[0]
  blocks = re.findall(r'^```\n(.*?)^```', section, re.DOTALL | re.MULTILINE)
  lines = ''.join(blocks).replace('\\\n', ' ').splitlines()
  return [shlex.split(line) for line in lines]


def substituted(words, folder):
  """A command's module and arguments, for the folder and ten steps."""
  interpreter, option, module, *rest = words
  assert interpreter in ('python', '.venv/bin/python')
  assert option == '-m'
  rest = [STEPS.get(word, word) for word in rest]
  rest = [
    re.sub(r'^(--experiment_dir=)?runs\b', rf'\1{folder}/runs', w) for w in rest
  ]
  if '--output' in rest:
    place = rest.index('--output') + 1
    rest[place] = f'{folder}/{rest[place]}'
  return module, rest


def run(module, arguments):
  if module == 'lab.offline':
    assert main(arguments) == 0
    return
  assert module == 'lab.run'
  few = ['--max_global_steps=10', '--eval_every_steps=2']
  with flagsaver.flagsaver():
    assert flags.FLAGS(['lab.run', *arguments, *few]) == ['lab.run']
    values = flags.FLAGS.flag_values_dict()
    runner.run(lab.run.flags.settings(), Context(), values)


@pytest.fixture
def small(monkeypatch):
  """Few examples to evaluate on, and targets out of reach."""
  for module in (click_dlrm, glyph_resnet):
    sizes = {'eval_train': 32, 'validation': 32, 'test': 32}
    monkeypatch.setattr(module.Workload, 'sizes', sizes)
    monkeypatch.setattr(module.Workload, 'evaluation_batch_size', 32)
  monkeypatch.setattr(
    glyph_resnet.Workload, 'has_reached_validation_target', lambda *_: False
  )


def test_the_commands_of_the_readme_run(small, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  found = [substituted(words, tmp_path) for words in commands()]
  assert len(found) == 6
  for module, arguments in found:
    run(module, arguments)
  names = {p.name for p in tmp_path.iterdir() if p.is_file()}
  assert names == {
    'avg.safetensors',
    *(f'ema_{decay}_{at}.pt' for decay in (0.8, 0.9) for at in (8, 10)),
    *(f'ema_{sigma}.safetensors' for sigma in (0.05, 0.15)),
  }
  with safe_open(str(tmp_path / 'avg.safetensors'), 'pt') as file:
    assert '"window": 5' in file.metadata()['weightavg']
  table = (tmp_path / TRIAL / 'offline' / 'sweep.csv').read_text().splitlines()
  # Windows and decays, at each cadence, at the evaluations after step 5.
  assert len(table) == 1 + (5 + 4) * 3 * 3
  assert 'relative error' in capsys.readouterr().out
