"""AlgoPerf submissions: one folder each, imported by dotted path."""
