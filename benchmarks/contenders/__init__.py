"""What is compared: ours, backprop in one process, DDP, torch's schedules, the published style."""
