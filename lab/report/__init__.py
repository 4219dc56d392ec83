"""One command from AlgoPerf logs to scores, tables, figures and a page."""
