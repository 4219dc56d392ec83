"""Let pages show files of results/, which lies outside of docs/.

mkdocs takes files of docs/ only. The hooks add the figures and the reports of
results/ to the site and turn `../results/` in a page, as it is right in the
repository, into their place there.
"""

import pathlib
from typing import Any

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]


def on_files(files: Any, config: Any) -> Any:
  """Add every figure and report of results/ that git could track."""
  kinds = ('*.png', 'report.md', 'report.json')
  found = (path for kind in kinds for path in (ROOT / 'results').rglob(kind))
  for path in sorted(found):
    name = path.relative_to(ROOT).as_posix()
    if '/runs/' not in name and '/local/' not in name:
      files.append(File.generated(config, name, abs_src_path=str(path)))
  return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
  """Point links at the copies in the site."""
  return markdown.replace('](../results/', '](results/')
