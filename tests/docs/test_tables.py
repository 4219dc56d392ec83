"""Tables of benchmark results, from literal rows."""

import json

import pytest

from benchmarks import measure, promote, tables
from lab.core.errors import InputError


def row(ratio):
  return {
    'ratio': ratio,
    'ours_ms': 1.0,
    'other_ms': None,
    'against': 'x',
    'repeats': 1,
  }


def test_misses_are_marked():
  lines = tables.complete(
    {
      'swap/flat_copy': row(0.07),
      'ema_update/flat_lerp': row(1.05),
      'train_step/w/nadamw_ema': row(1.004),
      'never_reached': row(None),
    }
  ).splitlines()[2:]
  assert lines == [
    '| `ema_update/flat_lerp` | 1.050 | 1.1 | 1 |  | x |',
    '| `never_reached` | – |  | 1 |  | x |',
    '| `swap/flat_copy` | 0.070 | 0.05 **missed** | 1 |  | x |',
    '| `train_step/w/nadamw_ema` | 1.004 | 1.003 **missed** | 1 |  | x |',
  ]


def test_the_rows_that_matter_come_in_their_order():
  lines = tables.selected(
    {'swap/flat_copy': row(0.04), 'ema_update/flat_lerp': row(1.2), 'y': row(1)}
  ).splitlines()
  assert lines[0].count('|') == lines[2].count('|')
  assert [line.split('`')[1] for line in lines[2:]] == [
    'ema_update/flat_lerp',
    'swap/flat_copy',
  ]
  assert '1.1 **missed**' in lines[2]


@pytest.mark.parametrize('name', sorted(tables.LIMITS))
def test_a_limit_names_its_group(name):
  assert tables.limit_of(name) == tables.LIMITS[name]
  assert tables.limit_of(f'{name}_other') is None


def test_promotion_keeps_what_was_not_measured_here(tmp_path):
  local, committed = tmp_path / 'local', tmp_path / 'committed'
  local.mkdir()
  committed.mkdir()
  with pytest.raises(InputError, match='No results'):
    promote.promote(local, committed)
  (committed / 'bench.json').write_text('{"b": {"ratio": 1}, "a": 1}')
  (local / 'bench.json').write_text('{"b": {"ratio": 2}, "c": 3}')
  assert promote.promote(local, committed) == [committed / 'bench.json']
  found = json.loads((committed / 'bench.json').read_text())
  assert found == {'a': 1, 'b': {'ratio': 2}, 'c': 3}


def test_benchmarks_write_to_an_ignored_folder():
  ignored = (measure.COMMITTED.parents[1] / '.gitignore').read_text()
  local = measure.LOCAL.relative_to(measure.COMMITTED.parents[1]).as_posix()
  assert f'/{local}/' in ignored.splitlines()
