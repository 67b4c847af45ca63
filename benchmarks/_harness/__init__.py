"""What the benchmarks share: options, paired timing, bars, result files."""
