"""The end of `make demo` and `make demo-speech`: what the model can do, and what to try next.

python -m kosmos_jax.evaluation.demo out/demo
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

from data_pipeline import builtin, spoken
from kosmos_jax.config import load_config
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

NEXT_SPEECH = """
Try next:
  kosmos generate --checkpoint {workdir} --prompt '<audio:{three}> {said}'
  kosmos generate --checkpoint {workdir} --prompt '<audio:{three}> plus <image:{one}> equals'
  kosmos generate --checkpoint {workdir} --prompt '<audio:{three}> 3. <audio:{four}>' --json
  kosmos export --checkpoint {workdir} --to hf-remote-code --out {workdir}-pytorch   # pip install 'kosmos_jax[torch]'
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
    names = dict(workdir=workdir, one=paths[1], two=paths[2], caption=builtin.CAPTION_PROMPT, label=label)
    if "audio" not in load_config(f"{workdir}/config.json").model.perception:
        print(NEXT.format(**names))
        return
    clips, labels, _ = spoken.spoken_digits("test")
    sounds = {digit: f"{workdir}/said_{builtin.WORDS[digit]}.wav" for digit in (3, 4)}
    for digit, path in sounds.items():
        Path(path).write_bytes(clips[labels.index(digit)])
    print(NEXT_SPEECH.format(**names, three=sounds[3], four=sounds[4], said=spoken.PROMPT))


if __name__ == "__main__":
    main()
