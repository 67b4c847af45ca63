"""What runs a search: processes, data, checks before the first trial."""
