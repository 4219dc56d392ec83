"""Two gloo ranks on the benchmark's models: the unwrapped module of a restore.

The benchmark's own set-up of a process group assumes CUDA and NCCL, so the test
starts one and wraps the model itself; checkpoints are the benchmark's.
"""

import algoperf_support as support
import pytest
from gloo import run_on_ranks

pytestmark = support.MARKS


@pytest.mark.parametrize(
  ('workload', 'compiled'),
  # mnist is plain, cifar has BatchNorm; a compiled model is not unwrapped.
  [('mnist', False), ('cifar', False), ('mnist', True)],
)
def test_two_ranks_resume_exactly_from_the_unwrapped_module(
  workload, compiled, tmp_path
):
  run_on_ranks(2, support.two_ranks, str(tmp_path), workload, compiled)


def test_statistics_synchronised_by_an_evaluation_survive_a_restart(tmp_path):
  run_on_ranks(2, support.two_ranks_of_conformer, str(tmp_path))
