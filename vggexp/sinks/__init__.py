"""Where a run's numbers go: the terminal and run.log, metrics.jsonl, TensorBoard."""
