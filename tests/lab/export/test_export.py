"""Exported folders: complete, alone, and replaced only when told."""

import ast
import json
import sys

import pytest
from exported_runs import NAMES, POINT, ROOT, is_jax, run_alone, run_here
from jax_support import HAS_JAX, REASON

from lab.export import exporter


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  output = tmp_path_factory.mktemp('exported')
  exporter.main([*NAMES, '--output', str(output), '--authors', 'A. Nonymous'])
  exporter.main([*NAMES, '--output', str(output), '--ruleset', 'self'])
  return output


# Among one there is no choice of the raw weights.
AMONG_ONE = POINT | {'averaging_candidates': 'ema 0.1'}


# Each costs a process that imports torch: some run, all are looked through.
@pytest.mark.parametrize(
  ('ruleset', 'name', 'point'),
  [
    ('external', 'nadamw_lawa_jax', POINT),
    *(
      pytest.param(*values, marks=pytest.mark.slow)
      for values in (
        ('external', 'nadamw_lawa', POINT),
        ('external', 'shampoo_ema', POINT),
        ('external', 'nadamw_auto', AMONG_ONE),
        ('self', 'nadamw_ema', None),
        ('external', 'nadamw_primal_jax', POINT),
        ('external', 'nadamw_auto_jax', AMONG_ONE),
      )
    ),
  ],
)
def test_an_export_runs_alone_as_its_origin_does(
  exported, tmp_path, monkeypatch, ruleset, name, point
):
  if is_jax(name) and not HAS_JAX:
    pytest.skip(REASON)
  monkeypatch.chdir(ROOT)
  parent = exported / exporter.FOLDERS[ruleset]
  alone = run_alone(parent, name, point, tmp_path)
  here = run_here(name, point)
  # Every module that is loaded comes out of the exported folder.
  loaded = alone.pop('loaded')
  part = 'jax.trainer' if is_jax(name) else 'pytorch.averager'
  assert f'{name}.weightavg.{part}' in loaded
  assert all(module.startswith(f'{name}.') for module in loaded)
  # The same code on the same numbers: bit for bit.
  assert alone == here
  # Averaged over three steps, not the last weights.
  assert alone['raw'] != alone['shown']


@pytest.mark.parametrize('name', NAMES)
def test_folders_carry_no_other_optimizer_than_their_own(exported, name):
  folder = exported / exporter.FOLDERS['external'] / name
  own, other = ('jax', 'pytorch') if is_jax(name) else ('pytorch', 'jax')
  half = folder / 'weightavg' / own
  is_shampoo = name.startswith('shampoo')
  assert (half / 'shampoo').exists() == is_shampoo
  assert (half / 'nadamw.py').exists() != is_shampoo
  assert not (folder / 'weightavg' / other).exists()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('ruleset', ['external', 'self'])
def test_folders_hold_what_the_benchmark_asks_for(exported, ruleset, name):
  folder = exported / exporter.FOLDERS[ruleset] / name
  files = {
    'LICENSE',
    '__init__.py',
    'requirements.txt',
    'submission.py',
    'submission_info.yml',
    'weightavg',
  }
  if ruleset == 'external':
    files.add('tuning_search_space.json')
    space = json.loads((folder / 'tuning_search_space.json').read_text())
    source = ROOT / 'tuning_search_spaces' / f'{name}.json'
    assert space == json.loads(source.read_text())
  assert {path.name for path in folder.iterdir()} == files
  lines = (folder / 'submission_info.yml').read_text().splitlines()
  info = {line.split(': ', 1)[0]: line.split(': ', 1)[1] for line in lines}
  info = {key: json.loads(value) for key, value in info.items()}
  assert info['submission_folder'] == name
  assert (
    info['ruleset'] == {'external': 'external', 'self': 'self-tuning'}[ruleset]
  )
  assert info['framework'] == ('JAX' if is_jax(name) else 'PyTorch')
  # The form's reader cuts lines at a hash before it reads YAML.
  assert not any('#' in line for line in lines)
  assert info['submission_name']
  assert info['authors'] == ('A. Nonymous' if ruleset == 'external' else '')
  # pip reads it, and installs nothing.
  requirements = (folder / 'requirements.txt').read_text().splitlines()
  assert all(line.startswith('#') for line in requirements)


@pytest.mark.parametrize('name', NAMES)
def test_imports_are_relative_and_lead_to_a_file(exported, name):
  folder = exported / 'external_tuning' / name
  reached = {folder / '__init__.py', folder / 'submission.py'}
  for path in folder.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        tops = {alias.name.partition('.')[0] for alias in node.names}
        assert tops <= sys.stdlib_module_names | exporter.PROVIDED
      if not isinstance(node, ast.ImportFrom):
        continue
      if not node.level:
        top = node.module.partition('.')[0]
        assert top in sys.stdlib_module_names | exporter.PROVIDED
        continue
      base = path.parents[node.level - 1].joinpath(
        *(node.module or '').split('.')
      )
      for alias in node.names:
        found = [
          candidate
          for candidate in (
            base / f'{alias.name}.py',
            base / alias.name / '__init__.py',
            base.with_suffix('.py'),
            base / '__init__.py',
          )
          if candidate.is_file()
        ]
        assert found, f'{path}:{node.lineno}'
        reached.add(found[0])
  # Nothing that no import leads to, but what makes a folder a package.
  assert {
    path
    for path in set(folder.rglob('*.py')) - reached
    if path.name != '__init__.py'
  } == set()


def test_titles():
  assert exporter.title('shampoo_ema') == 'Distributed Shampoo + EMA'
  assert exporter.title('nadamw_polynomial') == 'NadamW + polynomial average'
  assert exporter.title('nadamw_schedule_free') == 'NadamW + Schedule-Free'
