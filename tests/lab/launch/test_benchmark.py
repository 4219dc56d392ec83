"""The benchmark that a run needs: data, packages, version."""

import sys

import pytest

from lab.core.errors import InputError
from lab.launch import (
  benchmark,
)


@pytest.mark.parametrize(
  ('workload', 'flags'),
  [
    (
      'imagenet_resnet_gelu',
      [
        '--data_dir=/d/imagenet/pytorch',
        '--imagenet_v2_data_dir=/d/imagenet/pytorch',
      ],
    ),
    (
      'librispeech_deepspeech_tanh',
      [
        '--data_dir=/d/librispeech',
        '--librispeech_tokenizer_vocab_path=/d/librispeech/spm_model.vocab',
      ],
    ),
    ('wmt', ['--data_dir=/d/wmt']),
    ('finewebedu_lm', ['--data_dir=/d/fineweb_edu_10B']),
    ('criteo1tb_test', ['--data_dir=/d/criteo1tb']),
  ],
)
def test_each_workload_gets_the_paths_it_needs(workload, flags):
  assert benchmark.data_flags(workload, '/d') == flags


def test_missing_data_are_named(tmp_path):
  with pytest.raises(InputError, match=r'no .*librispeech'):
    benchmark.check_data('librispeech_conformer_gelu', str(tmp_path))
  (tmp_path / 'librispeech').mkdir()
  with pytest.raises(InputError, match=r'no .*spm_model\.vocab'):
    benchmark.check_data('librispeech_conformer_gelu', str(tmp_path))


def write_data(root, workload):
  """Make an empty file for each pattern that a workload reads."""
  base = benchmark.BASES[benchmark.BASE_OF[workload]]
  for pattern in base.contents:
    path = root / base.data / pattern.replace('*', 'x')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize('workload', benchmark.BASES)
def test_each_kind_of_file_that_a_workload_reads_must_exist(workload, tmp_path):
  base = benchmark.BASES[workload]
  assert base.contents
  (tmp_path / base.data).mkdir(parents=True)
  with pytest.raises(InputError, match=f'Missing data of {workload}: no '):
    benchmark.check_data(workload, str(tmp_path))
  write_data(tmp_path, workload)
  benchmark.check_data(workload, str(tmp_path))
  for pattern in base.contents:
    path = tmp_path / base.data / pattern.replace('*', 'x')
    path.unlink()
    with pytest.raises(InputError, match=r'dataset_setup\.py --') as error:
      benchmark.check_data(workload, str(tmp_path))
    assert pattern in str(error.value)
    assert '\n' not in str(error.value)
    path.touch()


def test_packages_of_the_language_model_are_looked_for(monkeypatch):
  missing = {'datasets'}
  monkeypatch.setattr(
    benchmark.importlib.util,
    'find_spec',
    lambda name: None if name in missing else object(),
  )
  benchmark.check_packages('wmt')
  with pytest.raises(InputError, match='Missing package datasets of finewebed'):
    benchmark.check_packages('finewebedu_lm')
  missing.clear()
  benchmark.check_packages('finewebedu_lm')


def test_the_benchmarks_version_is_looked_at(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, 'algoperf', raising=False)
  monkeypatch.delitem(sys.modules, 'submission_runner', raising=False)
  runner = tmp_path / 'submission_runner.py'
  runner.write_text("flags.DEFINE_string('workload', None, '')\n")
  (tmp_path / 'algoperf').mkdir()
  (tmp_path / 'algoperf' / '__init__.py').write_text('')
  version = '1.0.1.dev3+g58491177c'
  monkeypatch.setattr(
    benchmark.importlib.metadata, 'version', lambda name: version
  )
  assert benchmark.check_installed({'workload'}) is None
  with pytest.raises(InputError, match='has no --rng_seed'):
    benchmark.check_installed({'workload', 'rng_seed'})
  version = '0.7.0'
  warning = benchmark.check_installed({'workload'})
  assert warning.startswith('AlgoPerf 0.7.0 is installed; tested is 1.0, com')


def test_flags_that_absl_takes_are_taken(tmp_path):
  path = tmp_path / 'submission_runner.py'
  path.write_text(
    "flags.DEFINE_string('workload', None, '')\n"
    "flags.DEFINE_boolean('torch_compile', True, '')\n"
  )
  taken = benchmark._flags_of(path)
  assert {'workload', 'torch_compile', 'notorch_compile'} <= taken
  assert {'verbosity', 'v', 'noalsologtostderr', 'flagfile'} <= taken
  assert not {'noworkload', 'noverbosity', 'rng_seed', 'false'} & taken


def test_without_the_benchmark_its_workloads_are_refused(monkeypatch):
  monkeypatch.setattr(benchmark.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='AlgoPerf is not installed'):
    benchmark.check_installed(set())
