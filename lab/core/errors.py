"""An error that ends a command with one line instead of a traceback."""


class InputError(Exception):
  """The user gave something that cannot be used.

  The message is one line. It names the thing and the allowed values. Commands
  raise the error before they write or delete anything.
  """

  def __init__(self, message: str) -> None:
    super().__init__(' '.join(str(message).split()))
