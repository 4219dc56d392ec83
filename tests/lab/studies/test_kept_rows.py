import pathlib

import pytest

from lab.core.errors import InputError
from lab.studies.parts.kept_rows import Incomplete, join

PATH = pathlib.Path('rows.json')
ORDER = ('optimizer', 'workload', 'seed')


def rows(workload, seeds, names='ab', **columns):
  return [
    {'workload': workload, 'seed': seed, 'name': name, **columns}
    for seed in seeds
    for name in names
  ]


def joined(before, own, results=None):
  return join(PATH, before, own, own if results is None else results, ORDER)


def test_a_seed_and_its_rows_are_replaced_or_added():
  before = rows('w', [0, 1], value=1)
  own = rows('w', [1, 2], 'abc', value=2)
  assert joined(before, own) == rows('w', [0], value=1) + own


def test_the_same_seed_of_another_workload_stays():
  before = rows('a', [0]) + rows('b', [0], value=1)
  own = rows('b', [0], value=2)
  assert joined(before, own) == rows('a', [0]) + own


def test_rows_come_in_the_order_of_the_whole_grid():
  whole = [
    row
    for optimizer in ('n', 's')
    for row in rows('w', [0, 1, 2], 'ba', optimizer=optimizer)
  ]
  parts = [
    [row for row in whole if row['seed'] in seeds] for seeds in ([0, 2], [1])
  ]
  assert joined(*parts) == whole
  assert joined(*reversed(parts)) == whole


@pytest.mark.parametrize('own', [rows('w', [0], 'a'), []])
def test_fewer_rows_of_a_seed_are_refused(own):
  results = [{'workload': 'w', 'seed': 0}]
  before = rows('w', [0, 1])
  with pytest.raises(Incomplete) as error:
    joined(before, own, results)
  assert str(error.value) == (
    f'Nothing is written: rows.json has 2 rows of w, 0, and these runs give '
    f'{len(own)}. Remove it, or name another --output_dir.'
  )


def test_without_seeds_and_workloads_all_rows_are_one_unit():
  before = [{'trial': 1}, {'trial': 2}]
  assert joined(before, [{'trial': 3}, {'trial': 4}], [{'seed': 0}]) == [
    {'trial': 3},
    {'trial': 4},
  ]
  with pytest.raises(Incomplete, match='2 rows of all runs'):
    joined(before, [{'trial': 3}], [{'seed': 0}])


def test_targets_of_a_workload_are_not_mixed():
  before = rows('v', [0], target=1.0) + rows('w', [0], target=2.0)
  own = rows('w', [1], target=2.5)
  with pytest.raises(InputError) as error:
    joined(before, own)
  assert str(error.value) == (
    'Invalid target=2.5 of w. Other rows of it in rows.json have 2.0; new '
    'targets need all seeds.'
  )
  same = rows('w', [0, 1], target=2.5)
  assert joined(before, same) == rows('v', [0], target=1.0) + same
