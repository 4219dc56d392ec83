"""The documentation as tests read it: pages, code blocks, commands."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / 'README.md'
PAGES = [README, *sorted((ROOT / 'docs').rglob('*.md'))]


def name_of(path: pathlib.Path) -> str:
  """Path of a page relative to the repository, as an identifier of tests."""
  return path.relative_to(ROOT).as_posix()


def blocks(path: pathlib.Path, language: str = '') -> list[str]:
  """Contents of a page's fenced code blocks in a language."""
  found = re.findall(
    r'^```(\w*)[^\n]*\n(.*?)^```', path.read_text(), re.DOTALL | re.MULTILINE
  )
  return [content for label, content in found if label == language]


def commands(path: pathlib.Path) -> list[list[str]]:
  """Words of each shell command in a page's unlabelled code blocks."""
  found = []
  for block in blocks(path):
    for line in block.replace('\\\n', ' ').splitlines():
      words = shlex.split(line, comments=True)
      if words:
        found.append(words)
  return found


def lab_commands(path: pathlib.Path) -> list[list[str]]:
  """Module and arguments of each `python -m lab...` command of a page."""
  found = []
  for words in commands(path):
    for i, word in enumerate(words[:-1]):
      if word == '-m' and words[i + 1].startswith('lab'):
        found.append(words[i + 1 :])
  return found


def inline_code(path: pathlib.Path) -> list[str]:
  """Contents of a page's inline code, outside of fenced blocks."""
  text = re.sub(
    r'^```.*?^```', '', path.read_text(), flags=re.DOTALL | re.MULTILINE
  )
  return re.findall(r'`([^`]+)`', text)
