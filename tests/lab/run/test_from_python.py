"""The runner without its command line."""

import fakes
import pytest
import torch

from lab.run import from_python


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_the_clock_waits_for_the_device_of_the_workload(
  tmp_path, monkeypatch, device
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setattr(torch.cuda, 'is_available', lambda: device == 'cuda')
  trials = []

  class Run:
    def __init__(self, trial, *rest):
      trials.append(trial)

    def run(self):
      pass

  monkeypatch.setattr(from_python, 'TrialRun', Run)
  # Its own batch size: the submission knows only that of its workload.
  workload = fakes.register(monkeypatch)()
  path = fakes.write_submission(tmp_path)
  from_python.train(workload, path, fakes.POINTS[0], 0, str(tmp_path / 'run'))
  assert [trial.context.device.type for trial in trials] == [device]
