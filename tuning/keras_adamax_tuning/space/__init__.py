"""What a search may change, and the models that it changes."""
