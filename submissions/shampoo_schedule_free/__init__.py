"""AlgoPerf submission shampoo_schedule_free."""
