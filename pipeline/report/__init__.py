"""What a person sees and keeps; observes, and is never called by the mathematics."""
