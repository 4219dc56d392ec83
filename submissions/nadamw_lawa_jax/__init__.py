"""AlgoPerf submission nadamw_lawa."""
