"""The documentation as tests read it: pages, code blocks, commands."""

import pathlib
import re
import shlex
import shutil
import subprocess
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / 'README.md'
PAGES = [
  README,
  ROOT / 'CONTRIBUTING.md',
  *sorted((ROOT / 'docs').rglob('*.md')),
]


def name_of(path: pathlib.Path) -> str:
  """Path of a page relative to the repository, as an identifier of tests."""
  return path.relative_to(ROOT).as_posix()


class Block(NamedTuple):
  """A fenced code block: its language, its attributes, its lines."""

  language: str
  attributes: dict[str, str]
  content: str


def all_blocks(path: pathlib.Path) -> list[Block]:
  """Every fenced code block of a page, in order."""
  found = re.findall(
    r'^```(\w*)([^\n]*)\n(.*?)^```',
    path.read_text(),
    re.DOTALL | re.MULTILINE,
  )
  return [
    Block(language, dict(re.findall(r'(\w+)="([^"]*)"', rest)), content)
    for language, rest, content in found
  ]


def blocks(path: pathlib.Path, language: str = '') -> list[str]:
  """Contents of a page's fenced code blocks in a language."""
  return [b.content for b in all_blocks(path) if b.language == language]


def words_of(block: str) -> list[list[str]]:
  """Words of each shell command in a code block."""
  lines = block.replace('\\\n', ' ').splitlines()
  words = (shlex.split(line, comments=True) for line in lines)
  return [found for found in words if found]


def commands(path: pathlib.Path) -> list[list[str]]:
  """Words of each shell command in a page's unlabelled code blocks."""
  return [words for block in blocks(path) for words in words_of(block)]


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


def copy_repository(folder: pathlib.Path) -> None:
  """Copy the files that git tracks, or would track, into a new folder."""
  listed = subprocess.run(
    ['git', '-C', ROOT, 'ls-files', '-z', '--cached', '--others',
     '--exclude-standard'],
    check=True, capture_output=True, text=True,
  ).stdout  # fmt: skip
  for name in listed.rstrip('\0').split('\0'):
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(ROOT / name, folder / name)
