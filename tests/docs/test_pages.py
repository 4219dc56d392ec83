"""Links, names and code of the documentation agree with the repository."""

import re

import pytest
import torch
from jax_support import HAS_JAX, REASON
from pages import PAGES, README, ROOT, blocks, commands, inline_code, name_of

from lab.workloads import WORKLOADS

MAKEFILE = (ROOT / 'Makefile').read_text()
# Folders of the repository whose files the pages name.
FOLDERS = (
  'benchmarks',
  'docs',
  'lab',
  'results',
  'submissions',
  'tests',
  'tuning_search_spaces',
  'weightavg',
)
# Folders that commands write.
WRITTEN = ('results/quickstart', 'results/bench/local')
each_page = pytest.mark.parametrize('page', PAGES, ids=name_of)


def anchors(path):
  headings = re.findall(r'^#+ (.*)$', path.read_text(), re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }


@each_page
def test_links_lead_to_files_and_headings(page):
  text = page.read_text()
  for link in re.findall(r'\]\(([^)\s]+)\)', text):
    if re.match(r'https?://', link):
      continue
    path, _, anchor = link.partition('#')
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), link
    if anchor:
      assert anchor in anchors(target), link


@each_page
def test_named_files_exist(page):
  for code in inline_code(page):
    match = re.fullmatch(rf'(?:{"|".join(FOLDERS)})/[\w/.-]*', code)
    if match and not code.startswith(WRITTEN):
      assert (ROOT / code).exists(), code


@each_page
def test_make_targets_exist(page):
  found = [words[1] for words in commands(page) if words[0] == 'make']
  found += [c.split()[1] for c in inline_code(page) if c.startswith('make ')]
  for target in found:
    if '=' in target:  # a variable
      continue
    assert re.search(rf'(?m)^{target}( .*)?:', MAKEFILE), target


@each_page
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
  if page.name == 'extending.md':
    pytest.skip('test_extending.py follows the page (make test-slow).')
  if page.name == 'jax.md' and not HAS_JAX:
    pytest.skip(REASON)
  monkeypatch.chdir(tmp_path)
  for code in blocks(page, 'python'):
    exec(compile(code, name_of(page), 'exec'), {})


@pytest.mark.parametrize('page', [README, ROOT / 'docs' / 'own-loop.md'])
def test_the_first_loop_prints_that_the_average_is_better(page, capsys):
  code = next(iter(blocks(page, 'python')))
  torch.manual_seed(0)
  exec(compile(code, page.name, 'exec'), {})
  last = capsys.readouterr().out.split()[-2:]
  raw, averaged = map(float, last)
  assert averaged < 0.7 * raw


def test_the_readme_is_a_front_page():
  assert len(README.read_text().splitlines()) <= 170


@pytest.mark.parametrize('page', [README, ROOT / 'docs' / 'submit.md'])
def test_every_submission_is_listed(page):
  for path in ROOT.glob('submissions/*/submission.py'):
    assert f'`{path.parent.name}`' in page.read_text()


def test_every_workload_is_listed():
  text = (ROOT / 'docs' / 'local-lab.md').read_text()
  for name in WORKLOADS:
    assert f'| `{name}` |' in text


def test_every_page_is_in_the_navigation():
  navigation = (ROOT / 'mkdocs.yml').read_text()
  for page in (ROOT / 'docs').rglob('*.md'):
    name = page.relative_to(ROOT / 'docs').as_posix()
    assert f': {name}\n' in navigation, name
