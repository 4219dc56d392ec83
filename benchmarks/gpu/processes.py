"""End a process with everything that it started.

torchrun gives each rank a session of its own, so a signal to the process group
leaves ranks behind: they would hold memory and take time from what is measured
next.
"""

import contextlib
import os
import pathlib
import signal


def descendants(pid: int) -> list[int]:
  """Return the ids of all processes below one; none without /proc."""
  children: dict[int, list[int]] = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError, ValueError):
      # The name, in parentheses, may hold spaces and parentheses.
      fields = path.read_text(errors='replace').rpartition(')')[2].split()
      children.setdefault(int(fields[1]), []).append(int(path.parent.name))
  found: list[int] = []
  below = children.get(pid, [])
  while below:
    found += below
    below = [child for each in below for child in children.get(each, [])]
  return found


def end(pid: int) -> None:
  """Kill a process, its group if it leads one, and all below them.

  Args:
    pid: of a child that has not been waited for.
  """
  # Found before their parents end: orphans have another parent.
  below = descendants(pid)
  with contextlib.suppress(ProcessLookupError):
    if os.getpgid(pid) == pid:
      os.killpg(pid, signal.SIGKILL)
  for each in (pid, *below):
    with contextlib.suppress(ProcessLookupError):
      os.kill(each, signal.SIGKILL)
