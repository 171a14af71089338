"""Each filter takes what it is for, leaves the rest as it is, and does the same every time."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data_pipeline.documents import DataError, Document, Media, Text
from data_pipeline.files import opened
from data_pipeline.prepare.filters import (
    Decontaminated,
    English,
    FewerSingles,
    Gibberish,
    Images,
    MostImages,
    NearDuplicates,
    Placeholders,
    Rejection,
    Surroundings,
)
from data_pipeline.prepare.filters.contamination import ngram_hashes
from data_pipeline.prepare.filters.gibberish import repeated_characters, repeated_words
from data_pipeline.prepare.filters.pages import sentence_ends
from tests.data_pipeline.demo_data import parts

ENGLISH = "The harbour was quiet when the fishing boats came home, and nobody on the quay said a word about the storm."
GERMAN = "Der Hafen war still, als die Fischerboote heimkehrten, und niemand am Kai sprach ein Wort über den Sturm."
MMC4 = Path(__file__).parents[3] / "../shared/data/mmc4_sample/docs_sample.jsonl"


def document(*given, where="page") -> Document:
    return Document(parts(*given), where)


def picture(width=100, height=80, form="PNG", mode="RGB", colour=None, **options) -> bytes:
    """A file of noise, or of one colour."""
    if colour is not None:
        image = Image.new(mode, (width, height), colour)
    else:
        pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def why(filter_, *given, where="page") -> str:
    found = filter_.apply(document(*given, where=where))
    return found.why if isinstance(found, Rejection) else ""


def test_english_stays_and_other_languages_are_named():
    assert why(English(), ENGLISH) == "" and why(English(), ENGLISH.upper()) == ""
    assert why(English(), GERMAN).startswith("de ")
    assert why(English(), "港は静かで、漁船が帰ってきた。").startswith("ja ")
    assert why(English(), " \n ") == why(English()) == "no text"
    assert why(English(), picture()) == "no text"


def test_more_than_the_first_line_decides_the_language():
    navigation = "Start Kontakt Impressum Datenschutz Warenkorb Anmelden Registrieren Passwort vergessen Hilfe Suche\n"
    assert why(English(0.5), navigation) and why(English(0.5), navigation + ENGLISH * 20) == ""
    assert why(English(), ENGLISH + (GERMAN + " ") * 1000) != "" and why(English(), (ENGLISH + " ") * 1000) == ""


@pytest.mark.parametrize("text", ["\0", "\ufffd" * 50, "12345", "\u200b", "🙂" * 300, "a" * 100_000, "\n" * 10**6])
def test_no_text_is_too_odd_for_any_filter(text):
    filters = [English(), Gibberish(), Placeholders(), Surroundings(), MostImages(), FewerSingles(0), NearDuplicates()]
    for filter_ in filters:
        for given_ in ((text,), (text, picture(), text)):
            found = filter_.apply(document(*given_))
            assert isinstance(found, Rejection) or found.where == "page"


def test_gibberish_is_rejected_by_what_it_has_too_much_of():
    clean = Path(__file__).parents[3] / "LICENSE"
    for text in (ENGLISH, GERMAN, clean.read_text()):
        assert why(Gibberish(), text) == ""
    assert why(Gibberish(), "$12.99 | 4/5 | (301) >> 77% -- $13.49 | 3/5 | (12)").startswith("special characters")
    assert why(Gibberish(), "see https://a.io now or #cats today with #dogs and friends").startswith("symbols per word")
    assert why(Gibberish(), "well… maybe… then again… no").startswith("symbols per word")
    assert why(Gibberish(), "good morning 🌞 to all of you lovely people 🌞").startswith("symbols per word")
    assert why(Gibberish(), "a b c d e f g h i j k").startswith(("letters per word", "special characters"))
    assert why(Gibberish(), "Donaudampfschifffahrtsgesellschaft Rindfleischetikettierung").startswith("letters per")
    assert why(Gibberish(), "click the button below " * 3 + ENGLISH).startswith("repeated words")
    assert why(Gibberish(words=1.0), "a harbour at the quiet sea, " * 5).startswith("repeated characters")
    assert why(Gibberish(), "") == "no words" and why(Gibberish(), picture()) == ""


@given(st.text("ab ", max_size=200))
@settings(max_examples=60, deadline=None)
def test_repetition_is_what_obelics_counts(text):
    # Its definition, by dictionaries of slices.
    grams = [text[i : i + 10] for i in range(len(text) - 9)]
    counts = sorted((grams.count(gram) for gram in set(grams)), reverse=True)
    most = min(int(np.sqrt(len(counts))), sum(count > 1 for count in counts))
    expected = sum(counts[:most]) / sum(counts) if counts else 0
    assert repeated_characters(np.array([ord(c) for c in text], np.uint32)) == pytest.approx(expected)
    words = text.split()
    fives = [tuple(words[i : i + 5]) for i in range(len(words) - 4)]
    again = sum(fives.count(five) > 1 for five in fives)
    assert repeated_words(words) == pytest.approx(again / len(fives) if fives else 0)


def test_placeholders_of_conceptual_captions_are_found_and_html_is_not():
    assert why(Placeholders(), picture(), "a photo of <PERSON> at home") == "<PERSON>"
    assert why(Placeholders(), "the <b>bold</b> and <Person> or A<B>C") == ""


def test_images_of_a_page_that_show_nothing_are_left_out_and_its_texts_stay_apart():
    icon, line, good = picture(32, 32), picture(900, 64), picture()
    white = picture(form="JPEG", colour="white")
    page = document("One.", icon, "Two.", line, white, "Three. ", b"GIF89a", "Four.", good, good[:1000], "Five.")
    found = Images().apply(page)
    assert found == document("One.\nTwo.\nThree. Four.", good, "Five.")
    assert Images().apply(found) is found  # nothing to change: the very same document
    assert why(Images(), "One.", icon, line, "Two.") == "longer than 5 to 1, under 64 pixels"
    assert why(Images(), "One.") == "no image" and why(Images(required=0), "One.") == ""
    assert why(Images(required=0), icon) == "nothing but under 64 pixels"
    assert Images(smallest=10**6, required=0).apply(document("One.", good)) == document("One.")


def test_what_is_of_one_colour_is_seen_as_people_see_it():
    drawing = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    ImageDraw.Draw(drawing).ellipse((20, 20, 80, 80), fill="black")  # all of its pixels are black, some transparent
    file = io.BytesIO()
    drawing.save(file, "PNG")
    assert why(Images(), file.getvalue(), "a disc") == ""
    assert why(Images(), picture(mode="I;16", colour=40_000), "grey") == "of one colour"
    deep = io.BytesIO()
    Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80) * 10).save(deep, "PNG")
    assert why(Images(), deep.getvalue(), "16 bits") == ""
    for mode, colour in (("RGB", (10, 200, 30)), ("L", 7), ("P", 3), ("RGBA", (9, 9, 9, 0)), ("1", 1)):
        assert why(Images(), picture(mode=mode, colour=colour), "plain") == "of one colour"
    assert why(Images(), picture(2000, 1500, "JPEG", colour="red"), "plain") == "of one colour"
    assert why(Images(), picture(2000, 1500, "JPEG"), "noise") == ""


def test_an_image_of_a_pair_that_cannot_be_read_is_left_to_what_decodes_it():
    broken, postscript = picture()[:500], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n"
    for data in (broken, postscript, b"", b"no image"):
        pair = document(data, "a caption")
        assert Images().apply(pair) is pair
        assert why(Images(), "One.", data, "Two.") == "cannot be read"
    assert why(Images(200), picture(300, 199), "small") == "under 200 pixels"


def test_a_pixel_bomb_is_not_decoded(monkeypatch):
    bomb = bytearray(picture(64, 64))
    bomb[16:24] = (60_000).to_bytes(4) * 2  # as its header says
    assert why(Images(), "One.", bytes(bomb), "Two.", picture(), "Three.") == ""
    assert why(Images(), "One.", bytes(bomb), "Two.") in ("cannot be read", "over 89,478,485 pixels")


def test_the_first_five_images_stay_with_the_text_up_to_the_next():
    image = picture()
    page = document(*("text", image) * 7, "end")
    assert MostImages(5).apply(page) == document(*("text", image) * 5, "text")
    few = document("text", image)
    assert MostImages(5).apply(few) is few
    sound = Media("audio", b"sound")
    assert MostImages(1).apply(document(sound, sound, image)) == document(sound, sound, image)


def test_half_of_those_with_one_image_go_by_name_and_the_same_ones_wherever_they_lie():
    image = picture()
    names = [f"pages-{n}.parquet[{m}]" for n in range(20) for m in range(50)]
    gone = {name for name in names if why(FewerSingles(), "text", image, where=f"/data/{name}")}
    assert gone == {name for name in names if why(FewerSingles(), image, where=f"gs://bucket/other/{name}")}
    assert 450 < len(gone) < 550
    assert not any(why(FewerSingles(), image, "and", image, where=name) or why(FewerSingles(), "x") for name in names)
    assert not any(why(FewerSingles(0.0), image, where=name) for name in names)
    assert all(why(FewerSingles(1.0), image, where=name) for name in names)


def test_those_of_a_small_validation_split_do_not_all_go_together():
    from data_pipeline.readers.file_reader import name_percent

    held_out = [name for name in (f"a.jsonl:{n}" for n in range(20_000)) if name_percent(name) < 2]
    gone = sum(bool(why(FewerSingles(), picture(8, 8), where=name)) for name in held_out)
    assert 0.4 < gone / len(held_out) < 0.6


def test_three_sentences_before_the_first_image_and_after_the_last_stay():
    image = picture()
    before = "One. Two! Three? Four.\nFive"
    page = document(before, image, "All. Of. This. Stays. Here.", image, "\nSix. Seven.\n\nEight. Nine. Ten.")
    found = Surroundings(3).apply(page)
    assert found == document("Three? Four.\nFive", image, page.parts[2].text, image, "\nSix. Seven.\n\nEight.")
    assert Surroundings(3).apply(found) is found
    several = document("A. B.", Media("audio", b"sound"), "C. D.", image)
    assert Surroundings(3).apply(several) == document("B.", Media("audio", b"sound"), "C. D.", image)
    assert Surroundings(0).apply(page) == document(image, page.parts[2].text, image)
    text = document(before * 3)
    assert Surroundings(3).apply(text) is text


@given(st.text("a. \n!", max_size=60), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_sentences_cover_the_text_and_none_is_blank(text, n):
    ends = sentence_ends(text)
    assert ends == sorted(set(ends)) and ends[-1:] == ([len(text)] if text.strip() else [])
    assert all(text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False))
    image = picture(8, 8)
    if text.strip():
        for page in (document(text, image), document(image, text)):
            once = Surroundings(n).apply(page)
            assert Surroundings(n).apply(once) == once


def test_documents_with_thirteen_words_of_an_evaluation_set_go(tmp_path):
    question = "Which of the four rivers that run through the old town is the longest, and why?"
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": 1, "turns": [{"question": question}]}) + "\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(f"A short line.\n{ENGLISH}\n".encode()))
    (tmp_path / "c.json").write_text(
        json.dumps([{"caption": "thirteen words are needed so this one is only just long enough to count"}])
    )
    sets = Decontaminated((f"{tmp_path}/*",))
    shouted = "Quiz:\n" + question.upper().replace(",", " --").replace(" ", "  ") + " Answer: the Elbe."
    assert why(sets, shouted) == "which of the four rivers that run through the old town is the"
    assert why(sets, picture(), "He said: " + ENGLISH.replace("storm", "wind")).startswith("the harbour was quiet")
    assert why(sets, "so thirteen words are needed so this one is only just long enough to count") != ""
    assert why(sets, " ".join(question.split()[:12])) == "" and why(sets, "A short line.") == why(sets, "") == ""
    assert why(Decontaminated((f"{tmp_path}/*",), n=3), "is it a short line?") == "a short line"


def test_an_evaluation_set_that_cannot_be_read_is_an_error_and_not_an_empty_one(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        Decontaminated((f"{tmp_path}/none",)).apply(document("x"))
    for name, data in (("a.jsonl", b"{}\n{"), ("a.txt", b"\xff\n"), ("a.json", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"evaluation set .*{name}: "):
            Decontaminated((f"{tmp_path}/{name}",)).apply(document("x"))


@given(st.lists(st.sampled_from(["an", "apple", "is", "red", "é"]), max_size=30), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_words_in_a_row_have_equal_hashes_if_they_are_equal(words, n):
    rows = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    hashes = ngram_hashes(" ".join(words).upper() + ".", n).tolist()
    assert len(hashes) == len(rows) and len(set(zip(rows, hashes, strict=True))) == len(set(rows)) == len(set(hashes))


def test_words_have_the_same_hashes_in_every_process():
    code = "from data_pipeline.prepare.filters.contamination import ngram_hashes as h; print(h('a b c d', 2).tolist())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert json.loads(run.stdout) == ngram_hashes("a b c d", 2).tolist()


@pytest.mark.skipif(not MMC4.exists(), reason="needs the sample of MMC4")
def test_of_real_web_pages_most_are_english_and_no_gibberish():
    with opened(str(MMC4)) as file:
        pages = [document(" ".join(json.loads(line)["text_list"])) for line in file]
    texts = [page for page in pages if not isinstance(English().apply(page), Rejection)]
    assert len(texts) > 0.9 * len(pages)
    assert sum(not isinstance(Gibberish().apply(page), Rejection) for page in texts) > 0.7 * len(texts)


def test_a_supervised_text_stays_apart_from_one_that_is_given():
    icon, good = picture(8, 8), picture()
    page = Document((Text("Q?", False), Media("image", icon), Text("A."), Media("image", good)), "page")
    assert Images().apply(page).parts == (Text("Q?", False), Text("\nA."), Media("image", good))
