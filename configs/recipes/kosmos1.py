"""What the paper leaves out of its corpora; a source takes one as recipe="configs/recipes/kosmos1.py:pages".

Where a value comes from: [P] the paper's appendix B.1, [KG] Kosmos-G's loader, [O] OBELICS and [G] Gopher, whose rules
have numbers where the paper gives none, [ours] none of them. The paper also leaves out what its evaluation sets have
[P]: that is Decontaminated(sets=("FOLDER/*.jsonl",)), with your own in FOLDER.
"""

from data_pipeline.prepare.filters import (
    English,
    FewerSingles,
    Gibberish,
    Images,
    MostImages,
    NearDuplicates,
    Placeholders,
    Surroundings,
)


def text():
    return [
        English(at_least=0.8),  # [ours]
        Gibberish(),  # [O] [G]
        NearDuplicates(),  # [P]
    ]


def captions():
    return [
        Images(smallest=200, aspect=3.0),  # [P] LAION's and COYO's sizes; [ours] the aspect
        Placeholders(),  # [P] of Conceptual Captions
        English(at_least=0.5),  # [ours] a caption is too short to be sure
    ]


def pages():
    return [
        English(at_least=0.8),  # [P] English alone
        Images(smallest=64, aspect=5.0),  # [P] 64 x 64, and not of one colour
        Gibberish(),  # [P] gibberish, [O] [G] in numbers
        MostImages(most=5),  # [P]
        Surroundings(sentences=3),  # [KG] before the first image and after the last
        FewerSingles(share=0.5),  # [P] half of those with one image
        NearDuplicates(),  # [P]
    ]
