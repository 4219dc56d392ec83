"""Rows of new runs beside those of a file."""

import functools
import importlib
import operator
import pathlib

import pytest

from lab import studies
from lab.core.errors import InputError
from lab.studies.parts import kept_rows
from lab.studies.parts.kept_rows import (
  BY_SEED,
  Incomplete,
  Units,
  join,
  replace,
)
from lab.studies.parts.study import Study

PATH = pathlib.Path('rows.json')
PLACE = operator.itemgetter('optimizer', 'workload', 'seed')


def rows(workload, seeds, names='ab', optimizer='n', **columns):
  return [
    {
      'workload': workload,
      'seed': seed,
      'candidate': name,
      'optimizer': optimizer,
      **columns,
    }
    for seed in seeds
    for name in names
  ]


def joined(before, own, results=None):
  results = own if results is None else results
  return join(PATH, before, own, results, BY_SEED, PLACE)


def test_a_seed_and_its_rows_are_replaced_or_added():
  before = rows('w', [0, 1], steps=1)
  own = rows('w', [1, 2], 'abc', steps=2)
  assert joined(before, own) == rows('w', [0], steps=1) + own


def test_the_same_seed_of_another_workload_stays():
  before = rows('a', [0]) + rows('b', [0], steps=1)
  own = rows('b', [0], steps=2)
  assert joined(before, own) == rows('a', [0]) + own


def test_rows_come_in_the_order_of_the_whole_grid():
  whole = [
    row | {'tuned_for': kind}
    for optimizer in ('n', 's')
    for seed in (0, 1, 2)
    for kind in ('raw', 'ema')  # not in the order of the alphabet
    for row in rows('w', [seed], 'ba', optimizer)
  ]
  parts = [
    [row for row in whole if row['seed'] in seeds] for seeds in ([0, 2], [1])
  ]
  assert joined(*parts) == whole
  assert joined(*reversed(parts)) == whole


@pytest.mark.parametrize(
  'own',
  [
    rows('w', [0], 'a'),
    # As many, but others.
    rows('w', [0], 'ac'),
    rows('w', [0], optimizer='s'),
    [],
  ],
)
def test_no_row_of_a_seed_is_lost(own):
  results = [{'workload': 'w', 'seed': 0}]
  with pytest.raises(Incomplete, match='Nothing is written: these runs lack'):
    joined(rows('w', [0, 1]), own, results)


def test_a_row_that_would_be_lost_is_named():
  with pytest.raises(Incomplete) as error:
    joined(rows('w', [0, 1]), rows('w', [1], 'b'))
  assert str(error.value) == (
    'Nothing is written: these runs lack 1 rows of rows.json, such as '
    'workload=w, seed=1, candidate=a, optimizer=n.'
  )


def test_a_new_seed_has_what_all_other_ones_have():
  before = rows('w', [0], 'abc') + rows('w', [1], 'ab') + rows('v', [0], 'x')
  own = rows('w', [2], 'ab')
  assert joined(before, own) == [*before[-1:], *before[:-1], *own]
  with pytest.raises(Incomplete) as error:
    joined(before, rows('w', [2], 'bc'))
  assert str(error.value) == (
    'Nothing is written: these runs lack 1 rows at seed 2 that all other seeds '
    'have in rows.json, such as workload=w, candidate=a, optimizer=n.'
  )


def of_methods(names, seeds, **columns):
  return [
    {'workload': w, 'method': name, 'seed': seed, **columns}
    for w in 'vw'
    for name in names
    for seed in seeds
  ]


def joined_by_method(before, own):
  place = operator.itemgetter('workload', 'method', 'seed')
  # A result does not say which methods it has rows of.
  results = [{'workload': 'w', 'seed': 0}]
  return join(PATH, before, own, results, Units(('method',)), place)


def test_a_method_and_its_rows_are_replaced_or_added():
  before = of_methods('ac', [0, 1], steps=1)
  own = of_methods('bc', [0, 1], steps=2)
  assert joined_by_method(before, own) == [
    row | {'steps': 1 if row['method'] == 'a' else 2}
    for row in of_methods('abc', [0, 1])
  ]


@pytest.mark.parametrize(
  ('own', 'message'),
  [
    (of_methods('c', [0]), 'lack 2 rows of rows.json, such as workload=v, se'),
    (
      of_methods('b', [0]),
      'lack 2 rows at method b that all other methods have in rows.json, such ',
    ),
    (of_methods('b', [0, 1])[:2], 'lack 2 rows at method b that all other me'),
  ],
)
def test_a_method_needs_all_workloads_and_seeds(own, message):
  with pytest.raises(Incomplete, match=message):
    joined_by_method(of_methods('ac', [0, 1]), own)


def compared(before, own):
  """Methods of which every row is compared with that of the method a."""
  units = Units(('method',), compared_with=({'method': 'a'},))
  place = operator.itemgetter('workload', 'method', 'seed')
  return join(PATH, before, own, own, units, place)


def test_rows_stay_if_those_that_they_are_compared_with_are_made_again():
  before = of_methods('ab', [0], steps_to_target=5, best_validation=0.5)
  same = of_methods('a', [0], steps_to_target=5, best_validation=0.5, other=1)
  new = of_methods('c', [0], steps_to_target=3, best_validation=0.4)
  assert compared(before, [*same, *new]) == sorted(
    [*same, *before[1:2], *before[3:], *new],
    key=operator.itemgetter('workload', 'method'),
  )
  assert compared([], [*same, *new])


@pytest.mark.parametrize(
  'changes', [{'steps_to_target': 4}, {'best_validation': 0.25}]
)
def test_rows_do_not_stay_beside_other_ones_than_they_are_compared_with(
  changes,
):
  values = {'steps_to_target': 5, 'best_validation': 0.5}
  before = of_methods('ab', [0], **values)
  own = of_methods('a', [0], **values | changes)
  with pytest.raises(Incomplete) as error:
    compared(before, own)
  assert str(error.value) == (
    'Nothing is written: rows of rows.json that would stay, such as '
    'workload=v, seed=0, method=b, are compared with another workload=v, '
    'seed=0, method=a than that of these runs. Run them all.'
  )
  # All are new.
  assert compared(before, [*own, *of_methods('b', [0])])
  # Nothing says what they were compared with.
  with pytest.raises(Incomplete, match='are compared with another'):
    compared(of_methods('b', [0]), own)


def test_rows_without_those_that_they_are_compared_with_are_not_written():
  before = of_methods('ab', [0])
  with pytest.raises(Incomplete, match='these runs lack workload=v, seed=0, m'):
    compared(before, of_methods('b', [0]))


@pytest.mark.parametrize('name', ['method', 'target'])
def test_a_file_that_lacks_a_column_is_named(name):
  row = {'workload': 'w', 'method': 'a', 'seed': 0, 'target': 0.5}
  before = [{key: value for key, value in row.items() if key != name}]
  with pytest.raises(InputError) as error:
    compared(before, [row])
  assert str(error.value) == (
    f'Cannot join the rows of rows.json: they have no column {name!r}. Move '
    'the file away, or use another --output_dir.'
  )


def test_a_new_seed_is_complete_even_if_all_others_are_made_again():
  before = rows('w', [0, 1])
  with pytest.raises(Incomplete, match='lack 1 rows at seed 2 that all other'):
    joined(before, [*before, *rows('w', [2], 'a')])


def test_targets_of_a_workload_are_not_mixed():
  before = rows('v', [0], target=1.0) + rows('w', [0], target=2.0)
  own = rows('w', [1], target=2.5)
  with pytest.raises(InputError) as error:
    joined(before, own)
  assert str(error.value) == (
    'Invalid target=2.5 of w. Other rows of it in rows.json have 2.0; new '
    'targets need all of its rows.'
  )
  same = rows('w', [0, 1], target=2.5)
  assert joined(before, same) == rows('v', [0], target=1.0) + same


def test_all_rows_are_replaced_by_as_many_kinds_and_more():
  before = rows('w', [0, 1], steps=1)
  own = rows('w', [0, 1, 2], steps=2)
  assert replace(PATH, before, own) == own
  for fewer in (own[1:], rows('w', [0, 2])):
    with pytest.raises(Incomplete, match='these runs lack'):
      replace(PATH, before, fewer)


@pytest.mark.parametrize('text', ['[{', '{}', '5', '[1]', '[null]'])
def test_a_damaged_file_is_named(text, tmp_path):
  path = tmp_path / 'rows.json'
  assert kept_rows.read(path) is None
  path.write_text(text)
  with pytest.raises(InputError, match=r'rows\.json. The file is damaged\.'):
    kept_rows.read(path)


@functools.cache
def committed():
  """Studies with rows in git: by name, the declaration and rows by file."""
  found = {}
  for name in studies.names():
    module = importlib.import_module(f'lab.studies.{name}')
    declared = getattr(module, 'STUDY', None)
    if isinstance(declared, Study):
      files = {f: declared.committed(f) or [] for f in declared.files}
      found[name] = declared, files
  return found


def test_columns_tell_committed_rows_apart():
  """Two rows with the same values in IDENTITY would pass for each other."""
  for name, (_, files) in committed().items():
    for file, own in files.items():
      counts = kept_rows._count(own)
      assert not [key for key, n in counts.items() if n > 1][:1], (name, file)


def test_a_unit_of_the_committed_rows_joins_the_others():
  joining = {n: files for n, (d, files) in committed().items() if d.joins}
  assert joining
  for name, files in joining.items():
    declared = committed()[name][0]
    unit_of = functools.partial(kept_rows._key, columns=declared.joins.columns)
    if any(files.values()):
      assert any('target' in row for own in files.values() for row in own)
    for file, own in files.items():
      units = sorted({unit_of(row) for row in own})
      for unit in {*units[:1], *units[-1:]}:
        mine = [row for row in own if unit_of(row) == unit]
        # The runs have those as well with which theirs are compared.
        partners = {
          kept_rows._identity({**row, **other})
          for row in mine
          for other in declared.joins.compared_with
        }
        shared = {unit_of(r) for r in own if kept_rows._identity(r) in partners}
        made = [row for row in own if unit_of(row) in {unit, *shared}]
        others = [r for r in own if unit_of(r) != unit or unit in shared]
        args = made, declared.joins, declared.place_of
        assert join(PATH, others, made, *args) == own, (name, file)
