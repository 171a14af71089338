"""Experiments, one short Python file each: `get_config()` returns a complete config, often made from another one."""
