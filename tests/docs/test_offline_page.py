"""The commands of docs/offline.md run as the page gives them.

The test replaces the interpreter, the directories, and the numbers of steps.
"""

import re

from absl import flags
from absl.testing import flagsaver
from pages import ROOT, commands
from safetensors import safe_open

import lab.run.flags
from lab.offline.__main__ import main
from lab.run import runner
from lab.run.distributed import Context
from lab.workloads import click_dlrm, glyph_resnet

PAGE = ROOT / 'docs' / 'offline.md'
TRIAL = 'runs/x/glyph_resnet_pytorch/trial_1'
# Numbers of steps on the page, and those for a run of ten steps.
STEPS = {
  '--save_every=10': '--save_every=5',
  '--posthoc_every=100': '--posthoc_every=2',
  '3000,4000': '8,10',
}


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


def test_the_commands_of_the_page_run(shrink, tmp_path, monkeypatch, capsys):
  for module in (click_dlrm, glyph_resnet):
    # Targets out of reach: no run ends early.
    target = 2.0 if module is glyph_resnet else 0.0
    shrink(module.Workload, target=target)
  monkeypatch.chdir(ROOT)
  found = [substituted(words, tmp_path) for words in commands(PAGE)]
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
