"""Two gloo ranks on the benchmark's models: the unwrapped module of a restore.

The benchmark's own set-up of a process group assumes CUDA and NCCL, so the test
starts one and wraps the model itself; checkpoints are the benchmark's.
"""

import algoperf_ranks
import algoperf_support as support
from gloo import run_on_ranks

pytestmark = support.MARKS


def test_two_ranks_resume_exactly_from_the_benchmarks_checkpoints(tmp_path):
  run_on_ranks(2, algoperf_ranks.two_ranks, str(tmp_path))
