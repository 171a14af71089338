"""The input pipeline alone: tokens/s and images/s for each core, from the demo's data and from photo-sized JPEG files.

    python benchmarks/input_pipeline.py

"mixture" is one process making batches in one thread; "tf.data" is what training reads, with `--threads` of them at
work. Below, decoding and resizing alone: what a core could do at best, and the same by TensorFlow's image ops.
"""

import argparse
import io
import os
import platform
import subprocess
import tempfile
import time

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from data_pipeline import mixture as mixture_module
from data_pipeline.documents import Document, Media, Text
from data_pipeline.media import image
from data_pipeline.mixture import Mixture
from data_pipeline.pipeline import batches, make_tokenizer
from data_pipeline.tensorflow_alone import tensorflow
from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.modality import modalities


class Photos:
    """Captions with photo-like JPEG files of 384 x 384: smooth noise, about 25 KB each."""

    fingerprint = "photos-384"

    def __init__(self):
        rng = np.random.default_rng(0)
        self.files = []
        for _ in range(32):
            small = Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8))
            file = io.BytesIO()
            small.resize((384, 384), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __len__(self):
        return 2000

    def __getitem__(self, i):
        caption = Text(f"The digit is {'one two three four'.split()[i % 4]}.")
        return Document((Media("image", self.files[i % 32]), caption), f"photos[{i}]")


def config(image_size: int, image_tokens: int, seq_len: int, threads: int, sources: dict) -> ConfigDict:
    perception = {"tokens": image_tokens, "shape": (image_size, image_size, 3), "dtype": "uint8"}
    return ConfigDict(
        {
            "seed": 0,
            "model": {"perception": {"image": perception}},
            "training": {"microbatches": 1},
            "data": {
                "seq_len": seq_len,
                "batch_rows": 16,
                "isolate_documents": True,
                "max_skipped": 0,
                "decode_threads": threads,
                "prefetch": 2,
                "tokenizer": {"path": "", "vocab_size": 1000, "kosmos2_tags": False},
                "sources": sources,
            },
        }
    )


def demo_sources() -> dict:
    augment = {"image": {"crop_scale": (0.85, 1.0), "rotate": 10.0}}
    return {
        "text": {"kind": "pydoc", "share": 0.25, "per_row": {}},
        "captions": {"kind": "digits", "share": 0.25, "per_row": {"image": 15}, "augment": augment},
        "interleaved": {"kind": "digit_documents", "share": 0.5, "per_row": {"image": 20}, "augment": augment},
    }


def measure(name: str, mixture: Mixture, steps: int, threads: int):
    """Prints a line for the mixture alone and one for tf.data; CPU seconds, so that a busy machine changes little."""

    def line(way, stream):
        next(stream)
        wall, cpu, tokens, pictures = time.perf_counter(), time.process_time(), 0, 0
        for arrays in stream:
            tokens += int((arrays["segment_ids"] > 0).sum())
            pictures += len(np.unique(arrays["slots"])) // mixture.modalities["image"].tokens
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"| {name} | {way} | {tokens / cpu:,.0f} | {pictures / cpu:,.0f} | {tokens / wall:,.0f} |", flush=True)

    line("mixture", (mixture.batch(step)[0] for step in range(steps)))
    line(f"tf.data, {threads} threads", (arrays for _, arrays, _ in batches(mixture, 0, steps)))


def measure_decoding(files: list[bytes]):
    """Prints images/s of one core: PIL as we use it, and TensorFlow's ops in one thread."""
    tf = tensorflow()

    def tf_bicubic(file):
        image = tf.io.decode_image(file, channels=3, expand_animations=False)
        return tf.image.resize(image, (224, 224), "bicubic", antialias=True)

    shape, draws = (224, 224, 3), np.full(4, 0.5)
    ways = {
        "PIL: decode": lambda file: image.decode(file, "image"),
        "PIL: decode, bicubic 224 (squash)": lambda file: image.item(image.decode(file, "image"), shape),
        "PIL: decode, random crop, bicubic 224": lambda file: image.item(
            image.decode(file, "image"), shape, draws, crop_scale=(0.9, 1)
        ),
        "TensorFlow: decode": lambda file: tf.io.decode_image(file, channels=3, expand_animations=False),
        "TensorFlow: decode, bicubic 224, antialias": tf_bicubic,
    }
    print("\n| JPEG 384 x 384, one core | images/s |\n|---|---|")
    for name, decode in ways.items():
        decode(files[0])
        start = time.process_time()
        for _ in range(6):
            for file in files:
                decode(file)
        print(f"| {name} | {6 * len(files) / (time.process_time() - start):,.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(f"commit {commit.stdout.strip() or 'unknown'}, {platform.machine()}, {os.cpu_count()} cores")
    print("\n| data | by | tokens/s/core | images/s/core | tokens/s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        demo = config(32, 8, 256, args.threads, demo_sources())
        tokenizer = make_tokenizer(demo, cache)
        measure("demo", Mixture(demo, tokenizer, "train", cache), args.steps, args.threads)
        photos = Photos()
        one = {"photos": {"kind": "photos", "share": 1.0, "per_row": {"image": 7}}}
        mixture_module.make_source = lambda *_: photos
        paper = config(224, 64, 512, args.threads, one)
        tokenizer = Tokenizer(tokenizer.model_bytes, modalities=modalities(paper.model))
        measure("photos, 224 px", Mixture(paper, tokenizer, "train", cache), args.steps, args.threads)
    measure_decoding(photos.files)


if __name__ == "__main__":
    main()
