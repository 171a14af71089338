"""`kosmos plan`: compile the training step for hardware that is not there, and say what it will need."""
