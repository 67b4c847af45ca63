"""The parts of `benchmarks/optimizer_step.py`."""
