"""Spoken digits: built in, said by the voices of eSpeak NG, or the recordings of a folder.

As with the handwritten digits of builtin.py, the words are fixed here, and an evaluation asks with the same.
"""

import functools
import importlib.metadata
import itertools
import re
from pathlib import Path

import numpy as np

from data_pipeline import builtin
from data_pipeline.builtin import DOCUMENTS, LABELS, WORDS, list_prompt, sum_prompt
from data_pipeline.documents import DataError, Document, Media, Text
from data_pipeline.espeak import Saying, say
from data_pipeline.readers import SPLITS, Listed, digest
from data_pipeline.retries import retried
from data_pipeline.shuffle import philox
from data_pipeline.template import unknown
from data_pipeline.wav import wav

PROMPT = "The digit said is"
CAPTIONS = (PROMPT + " {}.", "Someone says {}.", "This sounds like {}.")
ACCENTS = ("en", "en-us", "en-us-nyc", "en-029", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
# eSpeak NG's variants by split: a speaker of one is in no other, nor is one that sounds nearly alike (adam and klatt,
# the ivens, the stephs). Left out are robots, demons and those that say a digit for more than a second.
VOICES = {
    "train": (
        *("Alex", "Alicia", "Andy", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Lee", "Mario", "Michael", "Mike"),
        *("Nguyen", "Reed", "RicishayMax", "RicishayMax2", "Tweaky", "adam", "anika", "antonio", "aunty", "benjamin"),
        *("boris", "caleb", "croak", "david", "ed", "edward", "f4", "f5", "grandpa", "gustave", "iven", "iven3"),
        *("john", "kaukovalta", "klatt", "klatt3", "klatt4", "linda", "m3", "m5", "m6", "m7", "m8", "max", "miguel"),
        *("mike2", "pablo", "paul", "quincy", "rob", "robert", "shelby", "steph", "steph3", "victor", "whisper"),
        "whisperf",
    ),
    "validation": ("Jacky", "belinda", "f1", "grandma", "m1", "norbert", "pedro", "travis"),
    "test": ("Annie", "Storm", "announcer", "f2", "f3", "ian", "m2", "m4", "marcelo", "sandro"),
}
# Each voice says each digit so often, in another accent, at another pace and pitch.
TAKES = 3
# As the free spoken digit dataset numbers its recordings; the first five of each are its test set.
RECORDING = re.compile(r"(\d)_(.+)_(\d+)\.wav")
TEST, VALIDATION = range(5), range(5, 8)


def spoken_digits(split: str, recordings: str = "", held_out: str = "") -> tuple[tuple, tuple, tuple]:
    """WAV files, what digit each says, and who says it; in mixed order, no file in two splits.

    Args:
      split: "train", "validation" or "test".
      recordings: "" for eSpeak NG's voices, each in one split only; or a folder of `{digit}_{speaker}_{index}.wav`, the
        indices 0 to 4 for test, 5 to 7 for validation, and the others for training.
      held_out: a speaker of the recordings, who alone makes up the test, and is in neither of the other splits.

    Raises:
      DataError: the folder has no such files, no such speaker, or nothing in this split; `[speech]` is not installed.
    """
    if held_out and not recordings:
        raise DataError(f"held_out is {held_out!r} without recordings; eSpeak NG's voices are held out already")
    found = _recorded(recordings) if recordings else _synthesised()
    speakers = sorted({speaker for _, _, speaker, _ in found})
    if held_out and held_out not in speakers:
        raise DataError(f"{recordings}: held_out {unknown(held_out, speakers)}")
    chosen = [clip for clip in found if _split(*clip[2:], recordings, held_out) == split]
    if not chosen:
        raise DataError(f"{recordings}: there is no recording of the split {split}")
    order = philox((1798,)).permutation(len(chosen))
    files, labels, speakers, _ = zip(*(chosen[i] for i in order), strict=True)
    return files, labels, speakers


def _split(speaker: str, index: int, recordings: str, held_out: str) -> str:
    if not recordings:
        return next(split for split in SPLITS if speaker in VOICES[split])
    if held_out:
        is_test = speaker == held_out
    else:
        is_test = index in TEST
    return "test" if is_test else "validation" if index in VALIDATION else "train"


def _sayings() -> list[Saying]:
    """What eSpeak NG says, each voice `TAKES` times each digit."""
    sayings = []
    for voice, digit, _ in itertools.product(itertools.chain(*VOICES.values()), range(10), range(TAKES)):
        draw = philox((1798, 1, len(sayings)))
        accent = ACCENTS[draw.integers(len(ACCENTS))]
        rate, pitch, span = draw.integers((150, 30, 30), (221, 71, 71)).tolist()
        sayings.append(Saying(WORDS[digit], f"{accent}+{voice}", rate, pitch, span))
    return sayings


@functools.cache
def _synthesised() -> list[tuple[bytes, int, str, int]]:
    """All clips of all splits: file, digit, voice, take. In one go, because eSpeak NG is the same only then."""
    sayings = _sayings()
    rate, clips = say(sayings)
    return [
        (wav(np.frombuffer(clip, np.int16), rate), WORDS.index(saying.text), saying.voice.split("+")[1], n % TAKES)
        for n, (clip, saying) in enumerate(zip(clips, sayings, strict=True))
    ]


@functools.cache
def _recorded(folder: str) -> list[tuple[bytes, int, str, int]]:
    """All recordings of a folder: file, digit, speaker, index."""
    path = Path(folder).expanduser()
    names = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    found = [match for match in map(RECORDING.fullmatch, names) if match]
    if not found:
        raise DataError(f"{folder}: there is no recording in it; one is named digit_speaker_index.wav: 7_theo_12.wav")
    return [(retried((path / m[0]).read_bytes, f"{folder}/{m[0]}"), int(m[1]), m[2], int(m[3])) for m in found]


class _Clips:
    """The clips of a split, and what tells them from others."""

    def __init__(self, split: str, recordings: str, held_out: str):
        self.split = split
        self.files, self.labels, self.speakers = spoken_digits(split, recordings, held_out)
        made = self.files if recordings else (importlib.metadata.version("espeakng-loader"), _sayings())
        self.identity = (split, made, self.labels, self.speakers)


class SpokenDigits(Listed):
    """Kind `spoken_digits`: every clip with every caption, the clip first.

    Args:
      split: "train", "validation" or "test".
      recordings: see `spoken_digits`.
      held_out: see `spoken_digits`.
    """

    def __init__(self, split: str, recordings: str = "", held_out: str = ""):
        self._clips = _Clips(split, recordings, held_out)
        self.fingerprint = digest("spoken_digits", self._clips.identity, CAPTIONS)

    def __len__(self):
        return len(self._clips.files) * len(CAPTIONS)

    def __getitem__(self, i: int) -> Document:
        clip, caption = divmod(i, len(CAPTIONS))
        text = CAPTIONS[caption].format(WORDS[self._clips.labels[clip]])
        where = f"spoken_digits/{self._clips.split}[{i}]"
        return Document((Media("audio", self._clips.files[clip]), Text(text)), where)


class SpokenDocuments(Listed):
    """Kind `spoken_documents`: interleaved documents, made from their index alone out of the split's clips and images.

    Three in five are sums of a spoken and a handwritten digit, either first; the others lists of two to four clips, or
    of as many images, all labelled in one style, so that the first label tells how to read the next: a few-shot prompt.

    Args:
      split: "train", "validation" or "test".
      recordings: see `spoken_digits`.
      held_out: see `spoken_digits`.
    """

    def __init__(self, split: str, recordings: str = "", held_out: str = ""):
        self._clips = _Clips(split, recordings, held_out)
        self._images, self._digits = builtin.digits(split)
        first = [[part.text for part in self[i].parts if isinstance(part, Text)] for i in range(100)]
        self.fingerprint = digest("spoken_documents", self._clips.identity, self._digits, len(self), first)

    def __len__(self):
        return DOCUMENTS[self._clips.split]

    def __getitem__(self, i: int) -> Document:
        clips, draw = self._clips, philox((1798, 2 + SPLITS.index(self._clips.split), i))
        if draw.random() < 0.6:
            clip, image = draw.integers((len(clips.files), len(self._images)))
            answer = f" {WORDS[clips.labels[clip] + self._digits[image]]}."
            pair = [(clips.files[clip], "audio"), (self._images[image], "image")][:: draw.choice((1, -1))]
            (a, b), kinds = zip(*pair, strict=True)
            parts = sum_prompt(a, b, answer, kinds)
        else:
            style = list(LABELS)[draw.integers(len(LABELS))]
            heard, seen = ("audio", clips.files, clips.labels), ("image", self._images, self._digits)
            kind, shown, labels = heard if draw.random() < 0.5 else seen
            chosen = draw.integers(len(shown), size=draw.integers(2, 5))
            parts = list_prompt([(shown[j], labels[j]) for j in chosen], style, kind=kind)
        return Document(parts, f"spoken_documents/{clips.split}[{i}]")
