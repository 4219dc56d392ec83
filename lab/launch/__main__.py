"""`python -m lab.launch`."""

from lab.core import command_line
from lab.launch import launcher

command_line.run(launcher.main)
