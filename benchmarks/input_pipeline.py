"""The input pipeline: tokens and images a second, against Grain and webdataset on the same records, and what bounds it.

    pip install grain webdataset
    python benchmarks/input_pipeline.py > benchmarks/input_pipeline.md

Records are synthetic and prepared: text of 4 to 5,000 tokens, captions whose pictures are not read (their tokens are
counted), photographs of 512 x 384, stored at 224 px or as they were. Rates are for a core-second, so that other work on
the machine changes little, and in wall time where it says so. Grain reads ArrayRecord at random in one process,
webdataset a tar in order with torch's DataLoader; neither packs, both decode pictures by PIL as we do. Pictures
for a core-second are those of one decoding thread on either side, since two on one core slow each other down; pictures
for a second of wall time are those of two.
"""

import argparse
import functools
import importlib.metadata
import io
import os
import platform
import resource
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from data_pipeline.builtin import Pydoc
from data_pipeline.documents import Document, Media, Text
from data_pipeline.media import image
from data_pipeline.mixture import Mixture
from data_pipeline.pipeline import batches
from data_pipeline.prepare.ledger import consolidated, write_ledger
from data_pipeline.prepare.sources import prepared
from data_pipeline.readers import KINDS, Listed
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenizer import Encoded, Tokenizer
from kosmos_jax.modality import modalities

T, PHOTOS = 2048, 600
# Opening it takes longer than reading it, and is no part of what is measured.
pydoc = functools.cache(Pydoc)


class Photos(Listed):
    """Smooth noise of 512 x 384 as JPEG, about 40 KB each, with a caption."""

    fingerprint = "photos"

    def __init__(self, split: str):
        draw, self.files = np.random.default_rng(0), []
        for _ in range(32):
            small = Image.fromarray(draw.integers(0, 256, (48, 64, 3), np.uint8))
            file = io.BytesIO()
            small.resize((512, 384), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __len__(self):
        return PHOTOS

    def __getitem__(self, i):
        return Document((Media("image", self.files[i % 32]), Text(f"Photograph {i}.")), f"photos[{i}]")


class Prose(Listed):
    """The prose of Python's documentation, over and over."""

    fingerprint = "prose"

    def __init__(self, split: str):
        self._documents = pydoc("train")

    def __len__(self):
        return 40 * len(self._documents)

    def __getitem__(self, i):
        return self._documents[i % len(self._documents)]


def config(size: int, per_row: float, rows: int, source: dict, threads: int = 2) -> ConfigDict:
    source = dict(share=1.0, per_row=dict(image=per_row), augment={}) | source
    return ConfigDict(
        dict(
            seed=0,
            model=dict(perception=dict(image=dict(tokens=64, shape=(size, size, 3), dtype="uint8"))),
            training=dict(microbatches=1, steps=1),
            data=dict(
                seq_len=T, batch_rows=rows, bundle_rows=8, isolate_documents=True, max_skipped=0, prefetch=2,
                decode_threads=threads, tokenizer=dict(path="", vocab_size=1000, kosmos2_tags=False),
                sources=dict(source=source),
            ),
        )
    )  # fmt: skip


def synthetic(kind: str, folder: Path, tokenizer: Tokenizer, count: int = 65_536) -> list[np.ndarray]:
    """A prepared shard of texts or captions; returns the texts' tokens."""
    draw, bodies = np.random.default_rng(0), []
    (folder / "train").mkdir(parents=True)
    writer = ShardWriter(folder / "train/000000-000", tokenizer.modalities, tokenizer.size)
    tag, end = tokenizer.tag_ids["<image>"], tokenizer.tag_ids["</image>"]
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    for i in range(count):
        if kind == "text":
            sentences = np.clip(draw.lognormal(3, 0.6, draw.integers(1, 40)), 3, 120).astype(int)
            body = draw.integers(4, 900, sentences.sum()).astype(np.int32)
            none = np.zeros(0, np.int32)
            encoded, stored = Encoded(body, np.ones(len(body) + 1, bool), (), none, np.cumsum(sentences)), []
        else:
            words = draw.integers(4, 900, int(np.clip(draw.lognormal(2.7, 0.6), 1, 300)))
            body = np.concatenate([[tag] * 65, [end], words]).astype(np.int32)
            cuts, items = np.array([66, len(body)], np.int32), (Media("image", b""),)
            encoded = Encoded(body, np.arange(len(body) + 1) >= 66, items, np.array([1], np.int32), cuts)
            stored = [picture.getvalue()]
        writer.add(encoded, stored, f"{kind}[{i}]")
        bodies.append(body.astype(np.uint16))
    shard = writer.close() | dict(name="000000-000")
    report = dict(skipped={}, examples={}, shards=[shard])
    write_ledger(consolidated(str(folder / "train"), kind, tokenizer, [report]))
    return bodies


class WithoutPictures(Mixture):
    """Everything but reading pictures."""

    def _item(self, gathered, m):
        return np.zeros((8, 8, 3), np.uint8)


class Timer:
    """Seconds of wall and of all threads since it was made."""

    def __init__(self):
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def ours(mixture: Mixture, steps: int) -> tuple[float, float, float, float]:
    """Tokens and images for a core-second, and for a second, through tf.data."""
    for _ in batches(mixture, 0, 3):
        pass
    timer, tokens, pictures = Timer(), 0, 0
    for _, arrays, stats in batches(mixture, 0, steps):
        tokens += int((arrays["segment_ids"] > 0).sum())
        pictures += round(stats["item_fill"]["image"] * arrays["media"]["image"].shape[1])
    wall, cpu = timer()
    return tokens / cpu, pictures / cpu, tokens / wall, pictures / wall


def memory() -> float:
    """MiB that are resident now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def rate(items, count=len) -> float:
    timer, total = Timer(), 0
    for each in items:
        total += count(each)
    return total / timer()[1]


def grain_rates(folder: Path, texts, captions, files: list[bytes]) -> tuple[float, float, float]:
    import grain.python as grain
    from array_record.python.array_record_module import ArrayRecordWriter

    each = dict(texts=[text.tobytes() for text in texts], captions=[text.tobytes() for text in captions], files=files)
    for name, records in each.items():
        writer = ArrayRecordWriter(str(folder / name), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()

    def stream(name, decode):
        source = grain.ArrayRecordDataSource(str(folder / name))
        dataset = grain.MapDataset.source(source).shuffle(seed=0).map(decode)
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=64)))

    tokens = [rate(stream(name, lambda record: np.frombuffer(record, np.uint16))) for name in ("texts", "captions")]
    return *tokens, rate(stream("files", pixels), lambda _: 1)


def webdataset_rates(folder: Path, texts, captions, files: list[bytes]) -> tuple[float, float, float]:
    import torch
    import webdataset

    each = dict(texts=[text.tobytes() for text in texts], captions=[text.tobytes() for text in captions], files=files)
    for name, records in each.items():
        suffix = "jpg" if name == "files" else "bin"
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for i, record in enumerate(records):
                member = tarfile.TarInfo(f"{i:06}.{suffix}")
                member.size = len(record)
                tar.addfile(member, io.BytesIO(record))

    def stream(name, decode):
        dataset = webdataset.WebDataset(str(folder / f"{name}.tar"), shardshuffle=False).shuffle(100).map(decode)
        return torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=0)

    tokens = [
        rate(stream(name, lambda sample: np.frombuffer(sample["bin"], np.uint16))) for name in ("texts", "captions")
    ]
    return *tokens, rate(stream("files", lambda sample: pixels(sample["jpg"])), lambda _: 1)


def pixels(data: bytes) -> np.ndarray:
    return image.center_crop(image.decode(data), 224)


def prepare_rates(folder: Path, tokenizer: Tokenizer) -> tuple[float, float]:
    """Tokens for a core-second: of `prepare`, and of SentencePiece alone on the same texts."""
    import sentencepiece

    texts = [document.parts[0].text for document in Prose("train").read("all")]
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    bare = rate(map(pieces.encode, texts))
    timer = Timer()
    ledger = prepared(config(8, 0, 8, dict(kind="prose")), "source", "train", tokenizer, folder)
    return sum(ledger.tokens) / timer()[1], bare


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="of 64 rows; default: 60")
    args = parser.parse_args()
    KINDS.update(photos=Photos, prose=Prose)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    names = ("tensorflow-cpu", "grain", "array_record", "webdataset", "torch", "pillow", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print("# The input pipeline\n\n" + __doc__.split("\n\n")[2] + "\n")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"Commit {commit}, {machine}, {versions}.")
    print("\n    $ python benchmarks/input_pipeline.py\n")
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), args.steps)


def measure(folder: Path, steps: int):
    model = config(224, 0, 64, {}).model
    tokenizer = Tokenizer.train(
        (d.parts[0].text for d in pydoc("train").read("all")), 1000, modalities=modalities(model)
    )
    small = Tokenizer(tokenizer.model_bytes, modalities=modalities(config(8, 0, 64, {}).model))
    print("| records | from | tokens/s a core | tokens/s, wall | images/s a core | images/s, wall |")
    print("|---|---|---|---|---|---|")

    def line(records, from_, tokens, images=None, wall=None, image_wall=None):
        cells = ("" if each is None else f"{each:,.0f}" for each in (tokens, wall, images, image_wall))
        print(f"| {records} | {from_} | {' | '.join(cells)} |", flush=True)

    def mixture(tokens, cache, kind=Mixture, **settings):
        return kind(config(**settings), tokens, "train", folder / cache)

    texts = synthetic("text", folder / "text", small)
    told = synthetic("captions", folder / "captions", small)
    text = mixture(small, "t", size=8, per_row=0, rows=64, source=dict(kind="jsonl", prepared=str(folder / "text")))
    text_rate, _, wall, _ = ours(text, steps)
    line("text", "kosmos_jax", text_rate, wall=wall)
    source = dict(kind="jsonl", prepared=str(folder / "captions"))
    captions = mixture(small, "c", WithoutPictures, size=8, per_row=24.5, rows=64, source=source)
    caption_rate, _, wall, _ = ours(captions, steps)
    line("captions, pictures not read", "kosmos_jax", caption_rate, wall=wall)
    images = {}
    for media in ("inline", "original"):
        source = dict(kind="photos", media=media)
        one, two = (mixture(tokenizer, "p", size=224, per_row=26, rows=8, source=source, threads=n) for n in (1, 2))
        images[media], wall = ours(one, 12)[1], ours(two, 12)[3]
        line("photographs, " + dict(inline="stored at 224 px", original="512 x 384")[media], "kosmos_jax", None,
             images[media], image_wall=wall)  # fmt: skip
    ledger = prepared(config(224, 26, 8, dict(kind="photos")), "source", "train", tokenizer, folder / "p")
    (shard,) = ledger.shards(0, folder)
    stored = [shard.media(i).data for i in range(PHOTOS)]
    peers = {}
    for peer, rates in (("Grain, ArrayRecord", grain_rates), ("webdataset, DataLoader", webdataset_rates)):
        (folder / rates.__name__).mkdir()
        peers[peer] = found = rates(folder / rates.__name__, texts, told, stored)
        line("text", peer, found[0])
        line("captions, pictures not read", peer, found[1])
        line("photographs, stored at 224 px", peer, None, found[2])
    bare = {name: rate(map(pixels, files), lambda _: 1) for name, files in
            (("stored at 224 px", stored), ("512 x 384", Photos("train").files * 20))}  # fmt: skip
    for name, each in bare.items():
        line(f"photographs, {name}", "PIL alone", None, each)

    print("\n| | |\n|---|---|")
    for peer, found in peers.items():
        ratios = [a / b for a, b in zip((text_rate, caption_rate, images["inline"]), found, strict=True)]
        print("| against {} | text {:.1f}x, captions {:.1f}x, images {:.2f}x |".format(peer, *ratios))
    print(f"| photographs of 512 x 384, against PIL alone | {images['original'] / bare['512 x 384']:.0%} |")
    prepare, pieces = prepare_rates(folder / "prose", small)
    print(f"| preparing text | {prepare:,.0f} tokens/s a core, {prepare / pieces:.0%} of SentencePiece alone |")
    held = []
    for step, _, _ in batches(text, 0, 3001):
        if step in (100, 1000, 3000):
            held.append(f"{memory():,.0f} MiB at step {step:,}")
    print(f"| memory of the process, text | {', '.join(held)} |")
    print(
        "\n## Host cores for a chip\n\nAt 224 px from stored JPEG, for batches like the paper's (1.2M tokens and 7,100"
    )
    print("images a step):\n\n| images/s of the chip | cores |\n|---|---|")
    for speed in (100, 500, 1000, 5000):
        print(f"| {speed:,} | {speed / images['inline'] + speed / 7100 * 1.2e6 / text_rate:.1f} |")


if __name__ == "__main__":
    main()
