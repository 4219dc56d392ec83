"""Shared by all rooms: errors, command lines, logs, curves, search spaces."""
