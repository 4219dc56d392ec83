"""Run by torchrun: a rank of the local runner on the tiny workload."""

import os
import pathlib
import time

import fakes

from lab.run import runner


class Queue(fakes.QueueWithSkip):
  """Leaves the time in which a test kills a rank."""

  def __next__(self):
    if self.position >= 10:
      time.sleep(0.1)
    return super().__next__()


if __name__ == '__main__':
  os.chdir(pathlib.Path(__file__).resolve().parents[2])
  fakes.register(None, 'click_dlrm', queue=Queue)
  runner.main()
