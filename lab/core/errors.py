"""The error that ends a command with one line instead of a traceback."""


class InputError(Exception):
  """Something the user gave cannot be used; the message says what can.

  The message is one line that names the thing and what is allowed. Raised only
  before anything has been written or deleted.
  """

  def __init__(self, message: str) -> None:
    super().__init__(' '.join(str(message).split()))
