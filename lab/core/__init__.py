"""Parts that all rooms share: errors, command lines, logs, search spaces."""
