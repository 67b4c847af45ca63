"""The training of a trial: `OptunaTuner` and what runs in it."""
