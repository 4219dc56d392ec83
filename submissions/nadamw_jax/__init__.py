"""AlgoPerf submission nadamw."""
