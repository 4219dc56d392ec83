"""The laboratory: local runner, workloads and reports. Never exported."""
