"""Experiments, one short Python file each: `get_config()` returns a complete config, made from another one by a call."""
