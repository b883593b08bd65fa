"""What `python -m benchmarks list` prints, a module each."""
