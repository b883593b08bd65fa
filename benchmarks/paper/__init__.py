"""The paper's experiments: which to run, running them, keeping what they came to, and showing it beside the paper."""
