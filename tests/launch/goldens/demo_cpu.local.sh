#!/bin/bash
exec python -m launch.local --here=2 -- python -m kosmos_jax.cli train --config configs/demo.py --workdir out/demo-cpu --config.training.steps=300
