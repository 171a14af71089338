import subprocess
import sys

import numpy as np

from data_pipeline.cache import stored


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
    modules = (
        "documents tokenizer media.image readers readers.jsonl builtin prepare.sources plan mixture pipeline".split()
    )
    code = (
        f"import sys, {', '.join(f'data_pipeline.{module}' for module in modules)}; print('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
