"""The machine and the packages that everything else was measured with."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess

import torch

from benchmarks.gpu.setting import Rows, Setting

PACKAGES = ('torch', 'triton', 'algoperf', 'ema-pytorch', 'timm', 'jax')


def measure(setting: Setting) -> Rows:
  """Rows 'machine' and 'packages'."""
  cuda = setting.device.type == 'cuda'
  machine: dict = {
    'device': torch.cuda.get_device_name() if cuda else 'CPU',
    'cpu_count': os.cpu_count(),
    'platform': platform.platform(),
    'python': platform.python_version(),
  }
  if cuda:
    properties = torch.cuda.get_device_properties(setting.device)
    machine |= {
      'device_gigabytes': properties.total_memory / 1e9,
      'multiprocessors': properties.multi_processor_count,
      'driver': _driver(),
      'cuda': torch.version.cuda,
      'cudnn': torch.backends.cudnn.version(),
      'nccl': '.'.join(map(str, torch.cuda.nccl.version())),
    }
  yield 'machine', machine
  yield 'packages', {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    found = importlib.util.find_spec(package.replace('-', '_'))
    return None if found is None else 'importable, version unknown'


def _driver() -> str | None:
  command = [
    'nvidia-smi',
    '--query-gpu=driver_version',
    '--format=csv,noheader',
  ]
  try:
    return subprocess.run(
      command, capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
