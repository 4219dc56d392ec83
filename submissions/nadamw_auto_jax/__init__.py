"""AlgoPerf submission nadamw_auto."""
