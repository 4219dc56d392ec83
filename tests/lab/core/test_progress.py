"""Progress: a bar on a terminal, lines in a log."""

import logging
import sys

import pytest

from lab.core.progress import Progress


@pytest.mark.parametrize('terminal', [False, True])
def test_lines_come_through_with_and_without_a_bar(
  monkeypatch, caplog, capsys, terminal
):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: terminal)
  progress = Progress(total=10, start=4, visible=True)
  with caplog.at_level(logging.INFO, 'absl'):
    progress.step()
    progress.say('half way')
  progress.close()
  assert [record.message for record in caplog.records] == ['half way']
  assert ('5/10' in capsys.readouterr().err) is terminal


def test_other_ranks_draw_no_bar(monkeypatch, capsys):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  progress = Progress(total=10, start=0, visible=False)
  progress.step()
  progress.close()
  assert capsys.readouterr().err == ''
