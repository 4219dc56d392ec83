"""An error that ends a command with one line instead of a traceback."""

# Longer than any message whose values are of a sensible length.
_LONGEST = 1500
_END = 400


class InputError(Exception):
  """The user gave something that cannot be used.

  The message is one line. It names the thing and the allowed values. A file's
  key or value may be of any length, so a long message loses its middle.
  Commands raise the error before they write or delete anything.
  """

  def __init__(self, message: str) -> None:
    line = ' '.join(str(message).split())
    if len(line) > _LONGEST:
      line = f'{line[: _LONGEST - _END]} ... {line[-_END:]}'
    super().__init__(line)
