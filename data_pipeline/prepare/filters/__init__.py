"""Filters: what the paper leaves out of its corpora (appendix B.1), each a pure function with its thresholds beside it.

A recipe is a function in a Python file that returns filters in order; a source names it as "FILE.py:FUNCTION". A filter
has a `name`, and `apply(document)` returns the document, one with less in it, or a `Rejection` that says why. Others
need no registration: a recipe may define its own, as frozen dataclasses.
"""

from data_pipeline.prepare.filters.base import Filter, Rejection, text_of
from data_pipeline.prepare.filters.contamination import Decontaminated
from data_pipeline.prepare.filters.gibberish import Gibberish
from data_pipeline.prepare.filters.images import Images
from data_pipeline.prepare.filters.pages import FewerSingles, MostImages, Surroundings
from data_pipeline.prepare.filters.text import English, NearDuplicates, Placeholders

__all__ = [
    "Decontaminated",
    "English",
    "FewerSingles",
    "Filter",
    "Gibberish",
    "Images",
    "MostImages",
    "NearDuplicates",
    "Placeholders",
    "Rejection",
    "Surroundings",
    "text_of",
]
