"""One process at work: how it meets the others, what it builds, its loop."""
