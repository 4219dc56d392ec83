"""Averages that train beside those that watch: rows, names, tables."""

import argparse
import json
import pathlib

import pytest
from study_runs import cells, curve, lines, result

from lab.core.errors import InputError
from lab.studies import primal, steps
from lab.studies.parts import (
  execution,
  kept_rows,
  primal_tables,
  study,
  training,
  tuned,
)
from lab.studies.parts.methods import METHODS
from lab.workloads import click_dlrm


def watched(raw, others, **columns):
  """A run of NadamW at the raw weights' point, with every average."""
  curves = {name: curve(others) for name in tuned.CANDIDATES}
  curves |= {name: curve(o) for name, o in columns.pop('arrives', {}).items()}
  given = {'optimizer': 'nadamw', 'tuned_for': 'raw'} | columns
  return result(curves | {'raw': curve(raw)}, **given)


def trained(method, arrives, **columns):
  return result(
    {'shown': curve(arrives)}, optimizer=method, tuned_for='shown', **columns
  )


def by_method(rows):
  return {row['method']: row for row in rows}


@pytest.fixture(autouse=True)
def no_search(monkeypatch, tmp_path):
  """No search is committed."""
  monkeypatch.setattr(tuned, 'ROOT', tmp_path)


def search(tmp_path, workload, method, **winners):
  """Commit a search with these averages as winners."""
  folder = tuned.folder(workload, method)
  folder.mkdir(parents=True)
  record = {
    'winners': {
      kind: {'average': name, 'point': {}} for kind, name in winners.items()
    }
  }
  (folder / 'search.json').write_text(json.dumps(record))


def test_every_method_has_a_name_in_tables():
  named = set(primal_tables.TITLES)
  assert set(METHODS) <= named
  kinds = [kind for kind in tuned.KINDS if kind != 'raw']
  assert set(primal.DEFAULTS) == set(kinds)
  assert set(primal.DEFAULTS.values()) <= set(tuned.CANDIDATES)
  for optimizer in steps.OPTIMIZERS:
    for kind in kinds:
      assert {f'{optimizer}_{kind}', f'{optimizer}_{kind}_best'} <= named


def test_without_a_search_the_defaults_are_compared_and_marked():
  rows = primal.rows_of(
    [
      watched(80, 76, arrives={'ema 1 %': 72, 'ema 10 %': 60}),
      trained('nadamw_primal', 64),
      trained('lookahead', None),
    ]
  )
  assert tuple(rows[0]) == primal.COLUMNS
  found = by_method(rows)
  assert len(found) == len(rows)
  assert found['nadamw']['ratio_to_nadamw'] == 1.0
  assert found['nadamw_ema']['average'] == 'ema 1 %'
  assert found['nadamw_ema']['ratio_to_nadamw'] == 72 / 80
  assert found['nadamw_ema_best']['average'] == 'ema 10 %'
  assert found['nadamw_ema_best']['ratio_to_nadamw'] == 60 / 80
  assert found['nadamw_primal']['steps_to_target'] == 64
  assert found['nadamw_primal']['ratio_to_nadamw'] == 64 / 80
  assert found['nadamw_primal']['budget_steps'] == 100
  assert found['lookahead']['steps_to_target'] is None
  assert found['lookahead']['ratio_to_nadamw'] is None
  assert {row['searched'] for row in rows} == {False}


def test_after_a_search_its_own_averages_are_compared(tmp_path):
  search(tmp_path, 'w', 'nadamw', raw='raw', ema='ema 3 %', lawa='lawa 5 %')
  at_raw = watched(80, 76, tuned_for='raw, lawa', arrives={'lawa 5 %': 66})
  own = watched(90, 70, tuned_for='ema', arrives={'ema 3 %': 62, 'ema 1 %': 50})
  rows = primal.rows_of([at_raw, own])
  found = by_method(rows)
  assert len(found) == len(rows)
  assert found['nadamw']['steps_to_target'] == 80
  assert found['nadamw']['searched']
  # Of the run at its own point, and of a point that two kinds share.
  assert found['nadamw_ema']['steps_to_target'] == 62
  assert found['nadamw_lawa']['steps_to_target'] == 66
  # In hindsight only at the raw weights' point.
  assert found['nadamw_ema_best']['steps_to_target'] == 76
  assert found['nadamw_lawa_best']['average'] == 'lawa 5 %'


def results():
  """Three seeds of two workloads; primal averaging is unknown on one."""
  found = []
  for seed, late in enumerate((0, 4, 8)):
    found += [
      watched(80 + late, 72 + late, seed=seed),
      watched(90, 88, seed=seed, workload='v'),
      trained('nadamw_primal', 60 + late, seed=seed),
      trained('nadamw_schedule_free', 70 + late, seed=seed),
      trained('nadamw_schedule_free', 99, seed=seed, workload='v'),
    ]
  return found


def test_a_method_joins_the_others_and_a_seed_does_not():
  """The average that is best in hindsight depends on all seeds."""
  declared = primal.STUDY
  found = results()

  def joined(before, own):
    return kept_rows.join(
      pathlib.Path('rows.json'),
      before,
      primal.rows_of(own),
      own,
      declared.joins,
      declared.place_of,
    )

  base = [run for run in found if run['optimizer'] == 'nadamw']
  free = [run for run in found if run['optimizer'] == 'nadamw_schedule_free']
  both = primal.rows_of([*base, *free])
  assert joined(primal.rows_of(base), [*base, *free]) == both
  assert joined(both, base) == both
  with pytest.raises(kept_rows.Incomplete, match='lack 14 rows of'):
    joined(primal.rows_of(base), [run for run in base if run['seed']])


def test_a_method_joins_kept_rows_of_nadamw(monkeypatch):
  found = results()
  base = [run for run in found if run['optimizer'] == 'nadamw']
  free = [run for run in found if run['optimizer'] == 'nadamw_schedule_free']
  before, both = primal.rows_of(base), primal.rows_of([*base, *free])
  committed = {'primal.json': before}
  monkeypatch.setattr(
    study.Study, 'committed', lambda of, file: committed.get(file)
  )
  own = primal.rows_of(free)
  assert {row['method'] for row in own} == {'nadamw', 'nadamw_schedule_free'}
  joined = kept_rows.join(
    pathlib.Path('rows.json'),
    before,
    own,
    free,
    primal.STUDY.joins,
    primal.STUDY.place_of,
  )
  assert joined == both
  # Runs that are here are preferred, seed by seed.
  faster = [run | {'curves': free[0]['curves']} for run in base]
  assert primal.rows_of([*faster, *free]) != both
  # Without NadamW's curves there are no levels.
  assert primal.levels_of(free) == []


def test_a_kept_baseline_is_not_trained(monkeypatch):
  monkeypatch.setattr(
    study.Study, 'committed', lambda *given: [{'method': 'lookahead'}]
  )
  given = options(methods=['nadamw_primal'], keep_baseline=True)
  declared = primal.STUDY.trainings
  assert [run.submission for run in declared(given)] == ['nadamw_primal']
  given.methods = ['nadamw', 'nadamw_primal']
  with pytest.raises(InputError, match='with the method nadamw, which it is'):
    declared(given)
  # Its levels would stay, and be those of other runs.
  given.methods = ['lookahead']
  with pytest.raises(InputError, match='lookahead, which has rows in levels'):
    declared(given)


def test_averages_of_shampoo_come_from_steps_where_nadamw_is_the_same(
  monkeypatch,
):
  nadamw = [watched(80 + seed, 72, seed=seed) for seed in (0, 2)]
  shampoo = [watched(70, 60, seed=seed, optimizer='shampoo') for seed in (0, 2)]
  alone = primal.rows_of(nadamw)
  both = primal.rows_of([*nadamw, *shampoo])
  kept = steps.rows_of([*nadamw, *shampoo])

  def rows_beside(committed, results=nadamw):
    monkeypatch.setattr(study.Study, 'committed', lambda *given: committed)
    return primal.rows_of(results)

  assert rows_beside(kept) == both
  added = {row['method'] for row in both} - {row['method'] for row in alone}
  kinds = [kind for kind in tuned.KINDS if kind != 'raw']
  assert added == {
    'shampoo',
    *(f'shampoo_{kind}{end}' for kind in kinds for end in ('', '_best')),
  }
  # Other workloads and seeds of steps are not of these runs.
  assert rows_beside([*kept, *(r | {'seed': 4} for r in kept)]) == both
  for name in steps.OPTIMIZERS:
    some = [r for r in kept if (r['optimizer'], r['seed']) != (name, 2)]
    assert rows_beside(some) == alone
  for change in ({'best_validation': 0.0}, {'target': 0.0}):
    changed = [
      row | change
      if (row['optimizer'], row['candidate'], row['seed'])
      == ('nadamw', 'raw', 2)
      else row
      for row in kept
    ]
    assert rows_beside(changed) == alone
  # Runs that are here are preferred.
  later = [run | {'curves': nadamw[0]['curves']} for run in shampoo]
  assert rows_beside(kept, [*nadamw, *later]) == primal.rows_of(
    [*nadamw, *later]
  )
  assert rows_beside(kept, [*nadamw, *later]) != both


def test_the_table_has_medians_and_bold_minima():
  text = primal.table(primal.rows_of(results()))
  assert lines(text)[0] == ['method', 'v', 'w', 'all runs']
  assert cells(text, 'NadamW\\*') == ['1.00', '1.00', '1.00']
  assert cells(text, 'NadamW at its EMA\\*') == ['–', '**0.76**', '–']
  # Arrived two steps after 99, at 100 of 90.
  free = cells(text, 'NadamW, schedule-free\\*')
  assert free == ['1.11', '0.88', '1.00']
  assert 'Not searched on a workload' in text


def test_a_method_that_was_searched_everywhere_is_not_marked(tmp_path):
  for workload in 'vw':
    search(tmp_path, workload, 'nadamw_schedule_free', shown='shown')
  text = primal.table(primal.rows_of(results()))
  assert cells(text, 'NadamW, schedule-free') == ['1.11', '0.88', '1.00']


def test_verdicts_compare_medians_with_the_goals():
  text = primal.verdicts(primal.rows_of(results()))
  # The ratio is unknown on v for primal averaging: no median of all runs.
  best = cells(text, 'best average over NadamW')
  assert best[:2] == ['0.80', '0.94']
  assert best[2].startswith('NadamW, ')
  assert cells(text, 'best average over Shampoo') == ['0.70', '–', '–']
  assert cells(text, 'NadamW, schedule-free')[:2] == ['0.88', '1.00']
  latest = cells(text, 'NadamW, schedule-free, latest workload')
  assert latest == ['1.00', '1.11', 'v']


def test_gains_of_the_best_metric_are_in_ranges_of_nadamw():
  found = []
  for seed, raw in enumerate((0.40, 0.44, 0.50)):
    found += [
      result(
        {'raw': [[100, 1.0, raw]]},
        seed=seed,
        optimizer='nadamw',
        tuned_for='raw',
      ),
      result(
        {'shown': [[100, 1.0, raw - 0.05]]},
        seed=seed,
        optimizer='nadamw_primal',
        tuned_for='shown',
      ),
    ]
  text = primal.final_metric(primal.rows_of(found))
  assert cells(text, 'NadamW\\*') == ['+0.00', '+0.00']
  assert cells(text, 'NadamW at its EMA\\*') == ['+0.50', '+0.50']


def test_levels_are_those_of_the_raw_weights_of_nadamw():
  def falling(speed):
    return [[s, 1.0, 1.0 - speed * s / 100] for s in range(10, 101, 10)]

  base = result(
    {'raw': falling(1.0), 'ema 1 %': falling(1.25)},
    optimizer='nadamw',
    tuned_for='raw',
  )
  mine = result(
    {'shown': falling(2.0)}, optimizer='nadamw_primal', tuned_for='shown'
  )
  other_seed = mine | {'seed': 1}
  rows = primal.levels_of([base, mine, other_seed])
  assert {row['seed'] for row in rows} == {0}
  by = {(row['method'], row['fraction']): row['ratio'] for row in rows}
  for fraction in (0.5, 0.6, 0.7, 0.8, 0.9):
    assert by['nadamw_primal', fraction] == pytest.approx(0.5)
    assert by['nadamw_ema', fraction] == pytest.approx(0.8)
  text = primal.levels_table(rows)
  assert cells(text, 'NadamW at its EMA') == 5 * ['0.50']


def options(**changes):
  values = {
    'methods': ['nadamw_primal'],
    'workloads': ['click_dlrm'],
    'seeds': [3],
    'keep_baseline': False,
  }
  return argparse.Namespace(**(values | changes))


def test_the_baseline_is_always_run_and_shared_with_steps(tmp_path):
  own = primal.trainings(options())
  assert [run.submission for run in own] == ['nadamw', 'nadamw_primal']
  shared = steps.trainings(
    argparse.Namespace(
      optimizers=['nadamw'], workloads=['click_dlrm'], seeds=[3]
    )
  )
  assert [run.name for run in shared] == [own[0].name]
  everything = primal.trainings(options(methods=list(METHODS)))
  names = {run.submission for run in everything}
  assert names == set(METHODS)


def test_methods_without_a_search_are_named(tmp_path):
  (first, second) = primal.notes(options())
  assert first.startswith('nadamw is not searched yet on click_dlrm')
  assert second == (
    'nadamw_primal is not searched yet on click_dlrm: its point is '
    "nadamw's with its own defaults."
  )
  search(tmp_path, 'click_dlrm', 'nadamw_primal', shown='shown')
  assert len(primal.notes(options())) == 1


def test_rows_come_from_runs_of_the_submissions(shrink, tmp_path):
  shrink(click_dlrm.Workload, steps=40, eval_every_steps=10, target=9.0, size=8)
  given = options(methods=['nadamw_schedule_free', 'lookahead'])
  found = [
    execution.execute(run, str(tmp_path)) for run in primal.trainings(given)
  ]
  rows = by_method(primal.rows_of(found))
  assert rows['lookahead']['average'] == 'shown'
  # Every loss is below 9, at the first evaluation after 0.3 of 40 steps.
  assert rows['nadamw_schedule_free']['steps_to_target'] == 20
  values = [row['best_validation'] for row in rows.values()]
  assert len({round(v, 9) for v in values}) > 2
  assert execution.finished(primal.trainings(given), str(tmp_path)) == found


def test_the_figure_is_drawn(tmp_path):
  path = tmp_path / 'primal.png'
  primal_tables.draw(primal.rows_of(results()), path)
  assert path.stat().st_size > 10_000


def test_points_are_those_of_each_method(monkeypatch, tmp_path):
  monkeypatch.setattr(training, 'ROOT', tmp_path)
  path = training.tuned_path('click_dlrm')
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps([{'learning_rate': 0.1, 'beta2': 0.9}]))
  own = training.tuned_path('click_dlrm', 'lookahead')
  own.write_text(json.dumps([{'learning_rate': 0.2}]))
  runs = primal.trainings(options(methods=['lookahead', 'nadamw_primal']))
  rates = {run.submission: run.point['learning_rate'] for run in runs}
  assert rates == {'nadamw': 0.1, 'lookahead': 0.2, 'nadamw_primal': 0.1}


def test_the_first_run_makes_the_folder_of_the_study(monkeypatch, tmp_path):
  """Its runs are in another study's folder."""
  monkeypatch.chdir(tmp_path)
  seen = []

  def run_all(trainings, directory, jobs):
    seen.append(directory)
    return results()

  monkeypatch.setattr(execution, 'run_all', run_all)
  study.main('primal', '', primal.STUDY, ['--seeds=0', '--methods=nadamw'])
  assert seen == ['results/study/runs']
  rows = json.loads((tmp_path / 'results/primal/primal.json').read_text())
  assert rows == primal.rows_of(results())
  assert (tmp_path / 'results/primal/primal.png').exists()


def test_a_dry_run_counts_what_is_missing_and_writes_nothing(
  shrink, tmp_path, capsys
):
  shrink(click_dlrm.Workload, steps=40, eval_every_steps=10, target=9.0, size=8)
  folder = tmp_path / 'out'
  given = ['--workloads=click_dlrm', '--methods=lookahead', '--seeds=0,1']
  command = [*given, f'--output_dir={folder}', '--dry_run']
  study.main('primal', '', primal.STUDY, command)
  shown, notes = capsys.readouterr()
  assert shown.startswith('4 runs, of which are missing:\nclick_dlrm: 4 runs')
  assert 'lookahead is not searched yet on click_dlrm' in notes
  assert not folder.exists()
  run = primal.trainings(options(methods=['lookahead'], seeds=[0]))[-1]
  (folder / 'runs').mkdir(parents=True)
  execution.execute(run, str(folder / 'runs'))
  study.main('primal', '', primal.STUDY, command)
  assert 'All: 3 runs, ' in capsys.readouterr().out
