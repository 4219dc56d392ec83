"""AlgoPerf submission nadamw_polynomial."""
