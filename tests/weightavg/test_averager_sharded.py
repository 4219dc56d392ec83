"""Averages of DTensor parameters: FSDP2, HSDP, tensor parallelism, DCP."""

import averager_ranks
import pytest
from gloo import run_on_ranks

SCENARIOS = [scenario.__name__ for scenario in averager_ranks.SCENARIOS]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Run the scenarios on two ranks; their errors and checkpoints are here."""
  path = tmp_path_factory.mktemp('sharded')
  try:
    run_on_ranks(2, averager_ranks.run_scenarios, str(path), SCENARIOS)
  except Exception as error:  # each test tells its own part
    (path / 'error').write_text(str(error))
  return path


@pytest.mark.parametrize('name', SCENARIOS)
def test_two_ranks(folder, name):
  for rank in range(2):
    error = folder / f'{name}.{rank}'
    assert error.exists(), (folder / 'error').read_text()
    assert not error.read_text(), error.read_text()


def test_a_checkpoint_of_two_ranks_loads_on_one(folder):
  averager_ranks.check_loaded(folder, averager_ranks.make)
