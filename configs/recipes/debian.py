"""What is left out of the corpus of configs/corpora/debian.py: thresholds for screenshots and drawings."""

from data_pipeline.prepare.filters import (
    English,
    Gibberish,
    Images,
    MostImages,
    NearDuplicates,
    Surroundings,
)


def text():
    # Code, signatures and tables are special characters, and Python's documentation is full of them.
    return [
        Images(smallest=10**6, required=0),
        English(at_least=0.5),
        Gibberish(special=0.45, characters=0.3, words=0.3),
    ]


def captions():
    return [Images(smallest=32, aspect=4.0), NearDuplicates()]


def pages():
    return [
        English(at_least=0.8),  # the handbook is there in 26 languages
        Images(smallest=64, aspect=5.0),
        Gibberish(characters=0.3, words=0.3),
        MostImages(most=5),
        Surroundings(sentences=20),
        NearDuplicates(),  # what is not translated is there in English in every language
    ]
