"""The mathematics: blocks with their losses and optimizers, stages of them. No I/O."""
