import subprocess

import pytest

from tests.launch.cases import CASES, GOLDENS, golden, rendered


@pytest.mark.parametrize("case", CASES, ids=lambda case: golden(*case).name)
def test_the_text_is_the_golden_one(case):
    assert rendered(*case) == golden(*case).read_text()


def test_every_golden_belongs_to_a_case():
    assert {path.name for path in GOLDENS.iterdir()} == {golden(*case).name for case in CASES}


@pytest.mark.parametrize("case", [case for case in CASES if golden(*case).suffix != ".yaml"], ids=str)
def test_bash_reads_the_script(case):
    checked = subprocess.run(["bash", "-n"], input=rendered(*case), text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
