"""Inputs that somebody may have tampered with, and the readers of files.

An input is a valid file with edits, or made from scratch. A reader may take it
or refuse it with an InputError of one line. The guard fails a reader that opens
a file outside the input's folder, starts a process, connects to anything, takes
far more memory than the input is long, or does not come back.
"""

import contextlib
import json
import os
import pathlib
import signal
import sys
from collections.abc import Iterator

from hypothesis import strategies as st

from lab.core.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 20
# A multiple of the file, as promised, above what any reader takes.
MEMORY = 64 << 20
TIMES_FILE = 10
_TOKENS = (
  b'', b'\0', b'NaN', b'Infinity', b'-1', b'1e999', b'9' * 400, b'[' * 5000,
  b'{"a":' * 3000, b'null', b'true', b'""', b'../', b'/etc/passwd', b'..\\',
  b'__class__', b'<script>alert(1)</script>', b'"', b'\n', b'\r', b',' * 300,
  b'\xff\xfe', b'\xf0\x9f\x92\xa9', b'"' + b'x' * 140000, b'builtins',
  b'bytearray\n', b'cos\nsystem\n', b'F64', b'2147483648', b'%s%n', b'{0}',
  b'-9223372036854775809',
)  # fmt: skip
_FORBIDDEN = frozenset(
  (
    'os.exec', 'os.fork', 'os.forkpty', 'os.posix_spawn', 'os.spawn',
    'os.startfile', 'os.system', 'pty.spawn', 'shutil.rmtree', 'socket.connect',
    'socket.bind', 'subprocess.Popen', 'urllib.Request',
  )
)  # fmt: skip


def _peak() -> int:
  """Return the largest resident memory since the last reset, in bytes."""
  text = pathlib.Path('/proc/self/status').read_text()
  (line,) = (t for t in text.splitlines() if t.startswith('VmHWM'))
  return int(line.split()[1]) * 1024


def _reset_peak() -> int:
  """Forget the largest resident memory; return what is resident now."""
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  return _peak()


class Guard:
  """Watches what happens while a reader works on an input."""

  def __init__(self) -> None:
    self._folder: str | None = None
    self._faults: list[str] = []
    # No hook can be removed: this one does nothing outside of `active`.
    sys.addaudithook(self._hook)
    own = (sys.prefix, sys.base_prefix, ROOT / 'lab', ROOT / 'weightavg')
    system = ('/proc/', '/dev/', '/sys/', '/usr/')
    self._elsewhere = (*map(os.path.realpath, own), *system)

  def _hook(self, event: str, arguments: tuple) -> None:
    if self._folder is None:
      return
    if event in _FORBIDDEN:
      self._faults.append(f'{event} {str(arguments)[:100]}')
    elif event == 'open' and isinstance(arguments[0], str | bytes):
      path = os.path.realpath(os.fsdecode(arguments[0]))
      if not path.startswith((self._folder, *self._elsewhere)):
        self._faults.append(f'open {path[:200]}')

  @contextlib.contextmanager
  def active(self, folder: pathlib.Path, size: int) -> Iterator[None]:
    """Watch the block, whose input is `size` bytes long in `folder`."""

    def stop(number, frame):
      raise TimeoutError(f'no end after {SECONDS} s of processor time')

    before = _reset_peak()
    # Processor time: a busy machine makes no reader hang.
    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    self._folder, self._faults = os.path.realpath(folder), []
    try:
      yield
    except InputError as error:
      text = str(error)
      if '\n' in text or len(text) > 2000:
        raise AssertionError(f'not a line: {text}') from error
    finally:
      self._folder = None
      signal.setitimer(signal.ITIMER_PROF, 0)
      signal.signal(signal.SIGPROF, handler)
    taken = _peak() - before
    assert taken < MEMORY + TIMES_FILE * size, f'{taken} bytes for {size}'
    assert not self._faults, self._faults


def _edit(content: bytes, edit: tuple) -> bytes:
  kind, where, value = edit
  place = int(where * len(content))
  if kind == 'flip':
    if not content:
      return content
    place = min(place, len(content) - 1)
    flipped = content[place] ^ (1 << (value % 8))
    return content[:place] + bytes([flipped]) + content[place + 1 :]
  if kind == 'cut':
    return content[:place]
  if kind == 'drop':
    return content[:place] + content[place + 1 + value % 64 :]
  if kind == 'double':
    return content[:place] + content[max(0, place - value) :]
  token = _TOKENS[value % len(_TOKENS)]
  if kind == 'replace':
    return content[:place] + token + content[place + len(token) :]
  return content[:place] + token + content[place:]


EDITS = st.lists(
  st.tuples(
    st.sampled_from(('flip', 'cut', 'drop', 'double', 'insert', 'replace')),
    st.floats(0, 1),
    st.integers(0, 255),
  ),
  max_size=4,
)


def edited(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
  """A valid file with up to four edits."""

  def apply(seed: bytes, edits: list[tuple]) -> bytes:
    for edit in edits:
      seed = _edit(seed, edit)
    return seed

  return st.builds(apply, st.sampled_from(seeds), EDITS)


_SCALARS = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.sampled_from((10**400, -(2**63), 2**64))
  | st.floats()
  | st.text(max_size=8)
  | st.sampled_from(('linear', 'log', '../x', '/etc/passwd', '__class__', 'a'))
)


def json_files(keys: tuple[str, ...]) -> st.SearchStrategy[bytes]:
  """JSON of any shape, whose keys are often those that a reader knows."""
  names = st.sampled_from(keys) | st.text(max_size=5)
  values = st.recursive(
    _SCALARS,
    lambda inner: (
      st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4)
    ),
    max_leaves=12,
  )
  return values.map(lambda value: json.dumps(value).encode())
