"""Facts that the launcher knows about the benchmark without importing it."""

import algoperf_support as support
import pytest

from lab.launch import benchmark

pytestmark = support.MARKS


def test_workloads_and_variants_are_the_benchmarks():
  registry = support.quiet_import('algoperf.workloads.workloads')
  assert set(registry.WORKLOADS) == set(benchmark.BASE_OF)
  assert set(registry.BASE_WORKLOADS) == set(benchmark.SCORED)
  for name, base in benchmark.BASE_OF.items():
    assert registry.get_base_workload_name(name) == base


@pytest.mark.parametrize('name', benchmark.BASES)
def test_numbers_are_the_benchmarks(name):
  facts = benchmark.BASES[name]
  workload = support.workload_class(name)()
  assert facts.step_hint == workload.step_hint
  assert facts.max_runtime_sec == workload.max_allowed_runtime_sec
  assert facts.eval_period_sec == workload.eval_period_time_sec
  assert facts.eval_batch_size == workload.eval_batch_size


def test_the_language_models_shards_are_found(tmp_path):
  tf = support.quiet_import('tensorflow')
  for split in ('train', 'val'):
    folder = tmp_path / 'fineweb_edu_10B' / split
    tokens = tf.data.Dataset.from_tensor_slices({'input_ids': [[1, 2], [3, 4]]})
    tokens.save(str(folder))
  benchmark.check_data('finewebedu_lm', str(tmp_path))
