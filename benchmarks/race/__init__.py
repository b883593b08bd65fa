"""Time to accuracy: everything that a user would pick, on the same cores, tuned alike."""
