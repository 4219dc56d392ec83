"""Every claim is there, asks for few runs, and says which it lacks."""

import math

import pytest
from claim_results import asked, measured, typed

from lab.core.errors import InputError
from lab.studies.claims import (
  CLAIMS,
  claim,
  rows,
  runs,
  statistics,
)
from lab.studies.claims.claim import BELOW_ONE, Part
from lab.studies.claims.shelf import QUICK, Shelf
from lab.studies.parts import costs
from lab.workloads import WORKLOADS, build_workload

LETTERS = 'abcdefghijklmno'
# Five seeds on all workloads.
FIRST_TABLE = 'acdef'


def test_every_claim_has_a_text_a_source_and_a_measurement():
  assert set(CLAIMS) == {*LETTERS, 'noise'}
  for found in CLAIMS.values():
    assert found.text
    assert found.how
    assert found.how.endswith('.')
    if found.name in LETTERS:
      assert found.paper is not None
      assert found.where
  assert [c.name for c in claim.named(['noise', 'b', 'a'])] == [
    'a', 'b', 'noise',
  ]  # fmt: skip


def test_two_claims_of_one_name_are_refused():
  with pytest.raises(ValueError, match=r"Invalid name='a'. Another"):
    claim.register(name='a', text='', paper=None, where='')(lambda shelf: [])


def test_an_unknown_claim_lists_those_that_exist():
  with pytest.raises(
    InputError, match=r"Invalid claim='z'. Must be among a, b"
  ):
    claim.named(['a', 'z'])


def test_claims_share_their_runs():
  apart = sum(len(asked([name]).runs) for name in CLAIMS)
  together = asked(CLAIMS).runs
  assert len(together) < 0.6 * apart
  for run in together:
    assert run.submission_path.endswith('.py')


@pytest.mark.parametrize('name', FIRST_TABLE)
def test_the_first_table_has_five_seeds_on_all_workloads(name):
  pairs = {(run.workload, run.seed) for run in asked([name]).runs}
  assert pairs == {(w, seed) for w in WORKLOADS for seed in range(5)}


def test_a_quick_study_asks_for_all_kinds_of_runs_in_a_quarter_of_an_hour():
  quick = asked(CLAIMS, QUICK).runs
  full = asked(CLAIMS).runs

  def kinds(found):
    return {
      (run.submission, run.batch_factor, run.epochs, run.point.get('schedule'))
      for run in found
    }

  assert kinds(quick) == kinds(full)
  assert sum(map(costs.hours_of, quick)) < 0.5


def test_a_claim_about_an_absent_submission_is_not_measured(monkeypatch):
  monkeypatch.setattr(runs, 'PRIMAL', {'nadamw_absent': {}})
  (row,) = rows.rows_of(claim.named(['m']), Shelf())
  assert row['verdict'] == statistics.NOT_MEASURED
  assert row['reason'] == 'There is no submission nadamw_absent yet.'
  assert row['parts'] == []


@pytest.mark.parametrize('finished', [20, -1])
def test_unfinished_runs_leave_a_claim_unmeasured(finished):
  shelf = asked(['e'])
  # A verdict on fewer seeds of some workloads would look like one on all.
  finished %= len(shelf.runs)
  shelf.put(
    [
      typed(run, {'raw': 80, '*': 40}) if place < finished else None
      for place, run in enumerate(shelf.runs)
    ]
  )
  (row,) = rows.rows_of(claim.named(['e']), shelf)
  assert row['verdict'] == statistics.NOT_MEASURED
  assert row['reason'] == 'Some of its runs are not finished.'
  known = [part for part in row['parts'] if part['runs']]
  assert {part['verdict'] for part in known} == {statistics.HOLDS}


def test_parts_without_a_value_are_named():
  def result_of(run):
    found = typed(run, {'raw': 80, '*': 40})
    for points in found['curves'].values():
      for point in points[-1:]:
        point[2] = math.nan
    return found

  row = measured('g', result_of)
  assert row['verdict'] == statistics.NOT_MEASURED
  assert row['reason'].startswith('Its runs give no value for: EMA 1 %: gain')


def test_a_result_gets_the_target_that_its_workload_has_now():
  shelf = asked(['j'])
  first = shelf.runs[0]
  assert first.content['target'] is None
  without = typed(first, {'*': 50}) | {'target': None}
  shelf.put([without, *(None for _ in shelf.runs[1:])])
  found = shelf.get(first)
  assert found == without | {
    'target': build_workload(first.workload).validation_target_value
  }


def test_one_choice_is_made_for_all_workloads():
  choices = {
    'a': {('p', 0): 0.7, ('q', 0): 0.9},
    'b': {('p', 0): 0.6, ('q', 0): 0.8},
    'c': {('p', 0): None},
  }
  assert claim.best_fixed(choices)[0] == 'b'
  assert claim.best_fixed(choices, lowest=False)[0] == 'a'


def test_a_part_says_how_many_runs_have_no_value():
  part = Part(
    text='t',
    unit='ratio',
    effects={('p', 0): 0.5, ('p', 1): None, ('p', 2): math.inf},
    claimed=BELOW_ONE,
  )
  own = claim.Claim(
    name='x', text='', paper=None, where='', how='', measure=lambda _: [part]
  )
  (row,) = rows.rows_of([own], Shelf())
  (found,) = row['parts']
  assert (found['runs'], found['without_value']) == (1, 2)
  assert found['claimed'] == [None, 1.0]
  assert found['effects'] == [['p', 0, 0.5], ['p', 1, None], ['p', 2, None]]
  assert (found['low'], found['verdict']) == (None, statistics.UNDECIDED)
