"""The saved state: its format, how it fits, and how it is given back."""
