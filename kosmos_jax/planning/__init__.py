"""`kosmos plan`: compile the training step for hardware you do not have, and say what it will need."""
