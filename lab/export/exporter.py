r"""Write submissions as self-contained folders, in the shape AlgoPerf asks for.

  python -m lab.export nadamw_lawa --output DIR --authors 'Names, of yours'

makes DIR/external_tuning/nadamw_lawa with submission.py, the modules that it
reaches by imports (imports made relative), tuning_search_space.json,
submission_info.yml, requirements.txt, LICENSE and __init__.py; `--ruleset self`
makes DIR/self_tuning/nadamw_lawa, without a search space. That is what the
benchmark's submission_checker.py takes and what github.com/mlcommons/
submissions_algorithms keeps below `submissions/`. Its pull requests carry the
content of submission_info.yml as a YAML block. `all` stands for all names.

Nothing is written unless everything can be; each folder appears at once.
"""

import ast
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence

from lab.core import command_line, search_space
from lab.core.errors import InputError
from lab.export.imports import Graph, relative
from weightavg import __version__

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = 'weightavg'
# What the benchmark installs; a submission may not ask for other versions.
PROVIDED = frozenset(
  {'absl', 'algoperf', 'flax', 'jax', 'numpy', 'optax', 'torch'}
)
FOLDERS = {'external': 'external_tuning', 'self': 'self_tuning'}
_RULESETS = {'external': 'external', 'self': 'self-tuning'}
_WORDS = {
  'nadamw': 'NadamW',
  'shampoo': 'Distributed Shampoo',
  'lawa': 'LAWA',
  'ema': 'EMA',
  'auto': 'chosen average',
  'primal': 'primal averaging',
  'schedule-free': 'Schedule-Free',
  'jax': 'JAX',
}
# More than anybody could have a use for: a list of trials may be a whole study.
_MOST_POINTS = 1000
Files = dict[str, str]


def submissions(root: pathlib.Path = ROOT) -> list[str]:
  """Names of all submissions."""
  paths = root.glob('submissions/*/submission.py')
  return sorted(path.parent.name for path in paths)


def title(name: str) -> str:
  """A submission's name on a leaderboard.

  >>> title('nadamw_lawa')
  'NadamW + LAWA'
  """
  words = name.replace('schedule_free', 'schedule-free').split('_')
  return ' + '.join(_WORDS.get(word, f'{word} average') for word in words)


def _info(
  name: str,
  ruleset: str,
  framework: str,
  docstring: str,
  authors: str,
  affiliations: str,
) -> str:
  fields = {
    'submission_name': title(name),
    # Inside external_tuning/ or self_tuning/, as the pull request's form says.
    'submission_folder': name,
    'authors': authors,
    'affiliations': affiliations,
    'version': __version__,
    'ruleset': _RULESETS[ruleset],
    'framework': framework,
    'description': ' '.join(docstring.split()),
  }
  for key, value in fields.items():
    # The form's reader takes a hash for a comment, even inside quotes; at the
    # merge a shell expands the others.
    if any(character in value for character in '#$`\\\n'):
      raise InputError(
        f'Invalid {key}={value!r}. Must be a line without #, $, ` and \\.'
      )
  # A JSON string is a YAML string.
  lines = [
    f'{key}: {json.dumps(value, ensure_ascii=False)}'
    for key, value in fields.items()
  ]
  return '\n'.join(lines) + '\n'


def _search_space(path: pathlib.Path) -> str:
  search_space.load(str(path), count=_MOST_POINTS, seed=0)
  return path.read_text(encoding='utf-8')


def _init(path: pathlib.Path) -> str:
  """A package's `__init__` that offers nothing: its docstring."""
  docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
  return f'"""{docstring or path.parent.name}"""\n'


def _modules(graph: Graph) -> Files:
  """The reached modules, by path, with what makes them importable."""
  files = {}
  packages = {
    module.rsplit('.', depth)[0]
    for module in graph.modules
    for depth in range(1, module.count('.') + 1)
  }
  for module in sorted(packages - graph.modules):
    path = graph.path_of(module)
    assert path is not None
    files[str(path.relative_to(graph.root))] = _init(path)
  for module in sorted(graph.modules):
    path = graph.path_of(module)
    assert path is not None
    shown = str(path.relative_to(graph.root))
    inner = f'{module}.__init__' if path.name == '__init__.py' else module
    source = path.read_text(encoding='utf-8')
    files[shown] = relative(source, shown, inner, PACKAGE)
  return files


@functools.cache
def _imported_tops(text: str, path: str) -> frozenset[str]:
  """Top-level names of a file's absolute imports."""
  names: list[str] = []
  for node in ast.walk(ast.parse(text, path)):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
      names.append(node.module or '')
  return frozenset(name.partition('.')[0] for name in names)


def _check_sources(files: Files) -> None:
  """Every file compiles and imports nothing of this repository by name."""
  inner = {PACKAGE, 'lab', 'submissions', 'tests'}
  for path, text in files.items():
    if path.endswith('.py'):
      assert not _imported_tops(text, path) & inner, path


def contents(
  name: str,
  ruleset: str = 'external',
  authors: str = '',
  affiliations: str = '',
  root: pathlib.Path = ROOT,
) -> Files:
  """Texts of an exported submission's files, by path inside its folder.

  Args:
    name: A folder in submissions/.
    ruleset: 'external' or 'self'.
    authors: For submission_info.yml, separated by commas.
    affiliations: Likewise.
    root: The repository.

  Raises:
    InputError: it reaches a module that must not leave, or a file is missing.
  """
  face = root / 'submissions' / name / 'submission.py'
  graph = Graph(root, PACKAGE, PROVIDED)
  graph.add(face)
  source = face.read_text(encoding='utf-8')
  docstring = ast.get_docstring(ast.parse(source)) or title(name)
  shown = str(face.relative_to(root))
  needs = ', '.join(sorted(graph.outside))
  files = {
    '__init__.py': f'"""{title(name)}."""\n',
    'submission.py': relative(source, shown, 'submission', PACKAGE),
    'submission_info.yml': _info(
      name,
      ruleset,
      'JAX' if 'jax' in graph.outside else 'PyTorch',
      docstring,
      authors,
      affiliations,
    ),
    'requirements.txt': (
      f'# Nothing but what the benchmark itself installs: {needs}.\n'
    ),
    'LICENSE': (root / 'LICENSE').read_text(encoding='utf-8'),
    **_modules(graph),
  }
  if ruleset == 'external':
    path = root / 'tuning_search_spaces' / f'{name}.json'
    files['tuning_search_space.json'] = _search_space(path)
  _check_sources(files)
  return files


def _check_target(target: pathlib.Path, overwrite: bool) -> None:
  if not os.path.lexists(target):
    return
  if not overwrite:
    raise InputError(f'{target} exists. Use --overwrite to replace it.')
  if target.is_symlink() or not (target / 'submission.py').is_file():
    raise InputError(
      f'Cannot overwrite {target}. Must be an exported submission.'
    )


def _swap(new: pathlib.Path, target: pathlib.Path, aside: pathlib.Path) -> None:
  """Put `new` where `target` is; what was there goes aside, or stays."""
  existed = target.exists()
  if existed:
    aside.parent.mkdir(parents=True, exist_ok=True)
    os.rename(target, aside)
  try:
    os.rename(new, target)
  except OSError:
    if existed:
      os.rename(aside, target)
    raise


def write(
  exports: dict[str, Files], output: pathlib.Path, overwrite: bool = False
) -> list[pathlib.Path]:
  """Write folders, each complete at the moment it appears.

  Args:
    exports: Path below `output` to the contents of the folder there.
    output: Made if it is missing.
    overwrite: Replace folders of an earlier export.

  Raises:
    InputError: a folder exists or cannot be written; nothing was changed.
  """
  command_line.check_writable(output)
  targets = {folder: output / folder for folder in exports}
  for target in targets.values():
    _check_target(target, overwrite)
  output.mkdir(parents=True, exist_ok=True)
  # On the same file system as the folders, so that they can be renamed.
  with tempfile.TemporaryDirectory(dir=output, prefix='.export_') as temporary:
    base = pathlib.Path(temporary)
    for folder, files in exports.items():
      for name, text in files.items():
        path = base / 'new' / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    for folder, target in targets.items():
      target.parent.mkdir(parents=True, exist_ok=True)
      _swap(base / 'new' / folder, target, base / 'old' / folder)
  return list(targets.values())


def _arguments(argv: Sequence[str] | None) -> tuple[list[str], dict]:
  parser = command_line.Parser('python -m lab.export', description=__doc__)
  parser.formatter_class = command_line.Formatter
  parser.add_argument(
    'names', nargs='+', help=f'all, or among {", ".join(submissions())}'
  )
  parser.add_argument('--output', required=True, type=pathlib.Path)
  parser.add_argument('--ruleset', choices=sorted(FOLDERS), default='external')
  parser.add_argument('--authors', default='', help='separated by commas')
  parser.add_argument('--affiliations', default='', help='separated by commas')
  parser.add_argument(
    '--overwrite', action='store_true', help='replace earlier exports'
  )
  values = vars(parser.parse_args(argv))
  given = ','.join(values.pop('names'))
  return command_line.names_of(given, submissions(), 'submission'), values


def main(argv: Sequence[str] | None = None) -> None:
  """Export what the command line names."""
  names, values = _arguments(argv)
  ruleset = values['ruleset']
  exports = {
    f'{FOLDERS[ruleset]}/{name}': contents(
      name, ruleset, values['authors'], values['affiliations']
    )
    for name in names
  }
  for path in write(exports, values['output'], values['overwrite']):
    print(path)
  if not values['authors']:
    print('Fill in the authors in submission_info.yml before a pull request.')
  for name in names:
    print(f'Title of its pull request: [submission] {title(name)}')
