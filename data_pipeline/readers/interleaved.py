"""Documents of texts and media in the order in which they stand on their page."""

from collections.abc import Iterable

from data_pipeline.documents import Media, Text


def in_order(items: Iterable[str | Media], between: str = "\n") -> list[Text | Media]:
    """Parts of a document. Texts without a letter are left out; one that follows a text is a paragraph of its own.

    Args:
      items: in reading order.
      between: what stands between two paragraphs.
    """
    parts = []
    for item in items:
        if isinstance(item, Media):
            parts.append(item)
        elif item.strip():
            parts.append(Text(between + item if parts and isinstance(parts[-1], Text) else item))
    return parts
