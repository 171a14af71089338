#!/bin/bash
: "${KOSMOS_API_KEY:?export it before: the key that requests must have}"
exec python -m launch.local --here=2 -- python -m kosmos_jax.cli serve --checkpoint out/demo-cpu --host 0.0.0.0 --port 8000 --config.mesh.tensor=2
