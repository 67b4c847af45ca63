"""What every room of the search needs."""
