"""Errors are one line of a sensible length."""

from lab.core.errors import InputError


def test_a_message_is_one_line_whatever_it_quotes():
  text = str(InputError('Invalid key ' + 'x\n' * 5000 + '. Must be a name.'))
  assert text.startswith('Invalid key x x')
  assert text.endswith('. Must be a name.')
  assert len(text) < 2000
  assert '\n' not in text
  assert str(InputError('Invalid a=1.\n Must be 2.')) == (
    'Invalid a=1. Must be 2.'
  )
