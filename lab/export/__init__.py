"""Submissions as self-contained folders: `python -m lab.export`."""
