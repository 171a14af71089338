import re
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.index import load_index, stored
from data_pipeline.plan import load_plan
from data_pipeline.tokenizer import Tokenizer
from tests.data_pipeline.demo_data import ListSource, image, parts

DOCUMENTS = [("The digit is one. The digit is two.",), (b"A", " is one", b"B"), "torn page", ("Three.",)]


def test_the_index_is_what_the_tokenizer_says_of_each_document(tokenizer, tmp_path):
    index = load_index(ListSource(DOCUMENTS), tokenizer, tmp_path, "pages")
    assert len(index) == 4
    for i in (0, 1, 3):
        encoded = tokenizer.encode_document(parts(*DOCUMENTS[i]))
        cuts, items = index.document(i)
        np.testing.assert_array_equal(cuts, encoded.cuts)
        assert items.tolist() == [[int((encoded.starts < cut).sum())] for cut in encoded.cuts]
    assert index.document(1)[1].tolist() == [[1], [1], [2]]


def test_a_record_that_cannot_be_read_has_no_cuts_and_is_counted(tokenizer, tmp_path):
    index = load_index(ListSource(DOCUMENTS), tokenizer, tmp_path, "pages")
    assert len(index.document(2)[0]) == 0
    assert (index.skipped, index.last_skipped) == ({"record": 1}, "list[2]: torn page")
    plan = load_plan(index, 32, [2], tmp_path)
    planned = {document for r in range(len(plan)) for document, _, _ in plan.row(r)}
    assert planned == {0, 1, 3}


@pytest.mark.parametrize(
    "document, why",
    [
        (("half of a pair: \ud800",), r"list\[1\]: text 0 is no Unicode: .* position 16"),
        ((b"A", None), r"list\[1\]: part 1 is neither Text nor Media but NoneType"),
        ((b"A", np.zeros(3)), r"list\[1\]: part 1 is neither Text nor Media but ndarray"),
    ],
)
def test_what_no_tokenizer_can_read_is_a_bad_record_and_ends_nothing(tokenizer, tmp_path, document, why):
    index = load_index(ListSource([("One.",), document, ("Two.",)]), tokenizer, tmp_path, "pages")
    assert index.skipped == {"record": 1}
    assert re.match(why, index.last_skipped)
    assert [len(index.document(i)[0]) for i in range(3)] == [1, 0, 1]


def test_a_mistake_in_the_code_of_a_source_is_not_taken_for_a_bad_record(tokenizer, tmp_path):
    class Mistaken(ListSource):
        def __getitem__(self, i):
            return self.no_such_method(i)

    with pytest.raises(AttributeError, match="no_such_method"):
        load_index(Mistaken([("One.",)]), tokenizer, tmp_path, "pages")


def test_documents_that_the_rows_cannot_hold_are_in_the_plan_s_list_and_in_no_row(tokenizer, tmp_path):
    documents = [(b"A", "seven. " * 9000), ("seven. " * 9000,), (b"A", "seven."), ()]
    index = load_index(ListSource(documents), tokenizer, tmp_path, "pages")
    plans = [load_plan(index, 32, [1], tmp_path) for _ in range(2)]
    for plan in plans:
        assert plan.skipped.tolist() == [0] and "16 rows of 32 tokens for each item" in plan.why
        assert {document for r in range(len(plan)) for document, _, _ in plan.row(r)} == {1, 2}
    without_images = load_plan(index, 32, [0], tmp_path)
    assert sorted(without_images.skipped.tolist()) == [0, 2]


def test_index_and_plan_are_made_once_and_memory_mapped(tokenizer, tmp_path):
    first = load_index(ListSource(DOCUMENTS), tokenizer, tmp_path, "pages")
    plan = load_plan(first, 32, [2], tmp_path)
    unreadable = ListSource(["gone"] * 4)
    again = load_index(unreadable, tokenizer, tmp_path, "pages")
    np.testing.assert_array_equal(first.cuts, again.cuts)
    assert isinstance(again.cuts, np.memmap)
    assert load_plan(again, 32, [2], tmp_path).fill == plan.fill


@pytest.mark.parametrize("change", ["source", "tokenizer", "name"])
def test_what_changes_the_lengths_changes_the_key(tokenizer, tmp_path, change):
    longer = Tokenizer(tokenizer.model_bytes, modalities=[image(tokens=3)])
    changes = {"source": ListSource(DOCUMENTS, "other"), "tokenizer": longer, "name": "books"}
    settings = {"source": ListSource(DOCUMENTS), "tokenizer": tokenizer, "name": "pages"}

    def key(settings):
        return load_index(settings["source"], settings["tokenizer"], tmp_path, settings["name"]).key

    assert key(settings) == key(settings)
    assert key(settings) != key(settings | {change: changes[change]})


def test_of_two_that_build_at_once_the_first_one_wins(tmp_path):
    folder = tmp_path / "plan"

    def slow_build():
        stored(folder, lambda: ({"x": np.arange(3)}, {"by": "the first"}))
        return {"x": np.arange(9)}, {"by": "the second"}

    arrays, metadata = stored(folder, slow_build)
    assert (arrays["x"].tolist(), metadata) == ([0, 1, 2], {"by": "the first"})
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_a_folder_of_an_earlier_version_is_replaced_and_none_of_its_files_is_read(tmp_path):
    folder = tmp_path / "plan"
    folder.mkdir()
    (folder / "facts.json").write_text('{"by": "an earlier version"}')
    np.save(folder / "y.npy", np.arange(9))
    for _ in range(2):
        arrays, metadata = stored(folder, lambda: ({"x": np.arange(3)}, {"by": "this one"}))
        assert ({name: x.tolist() for name, x in arrays.items()}, metadata) == ({"x": [0, 1, 2]}, {"by": "this one"})
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_nothing_but_reading_imports_tensorflow():
    modules = "documents tokenizer media.image sources builtin index plan mixture pipeline".split()
    code = (
        f"import sys, {', '.join(f'data_pipeline.{module}' for module in modules)}; print('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
