"""What every stage stands on: tasks, batches of data, and the keys that results are found again by."""
