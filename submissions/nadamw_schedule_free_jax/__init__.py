"""AlgoPerf submission nadamw_schedule_free."""
