"""The end of `make demo`: what the model can do, and what to try next.

python -m kosmos_jax.evaluation.demo out/demo
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

from data_pipeline import builtin
from kosmos_jax.evaluation.command import evaluate
from kosmos_jax.logs import set_up_logging

NEXT = """
Try next:
  kosmos generate --checkpoint {workdir} --prompt '<image:{one}> {caption}'
  kosmos generate --checkpoint {workdir} --prompt '<image:{one}> plus <image:{two}> equals' --json
  kosmos generate --checkpoint {workdir} --prompt '<image:{one}> {label}. <image:{two}>' --beams 3
  kosmos export --checkpoint {workdir} --to hf-remote-code --out {workdir}-pytorch   # pip install 'kosmos_jax[torch]'
  kosmos train --config configs/demo.py --config.training.steps=3000 --workdir out/longer
"""


def main():
    set_up_logging()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir")
    workdir = parser.parse_args().workdir.rstrip("/")
    evaluate(SimpleNamespace(checkpoint=workdir, config=None, overrides=[], split="test"))
    images, labels = builtin.digits("test")
    paths = {digit: f"{workdir}/digit_{builtin.WORDS[digit]}.png" for digit in (1, 2)}
    for digit, path in paths.items():
        Path(path).write_bytes(images[list(labels).index(digit)])
    label = builtin.LABELS["numeral"](1)
    print(NEXT.format(workdir=workdir, one=paths[1], two=paths[2], caption=builtin.CAPTION_PROMPT, label=label))


if __name__ == "__main__":
    main()
