"""Files that an export holds, for users who have PyTorch and not kosmos_jax; nothing here imports kosmos_jax."""
