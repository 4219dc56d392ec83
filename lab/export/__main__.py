"""`python -m lab.export`."""

from lab.core import command_line
from lab.export import exporter

command_line.run(exporter.main)
