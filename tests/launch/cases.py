"""What the golden files show. After a wanted change, `python -m tests.launch.cases` writes them again."""

import sys
from dataclasses import replace
from pathlib import Path

from launch.command import target_module
from launch.job import JobDescription, load_job

ROOT = Path(__file__).parents[2]
GOLDENS = Path(__file__).parent / "goldens"
# Shipped job (or job and other topology) -> where it can run.
CASES = [
    ("demo_cpu", "", "slurm"),
    ("demo_cpu", "", "local"),
    ("kosmos1_slurm", "", "slurm"),
    ("kosmos1_v5p", "", "gke"),
    ("kosmos1_v5e", "", "gke"),
    ("kosmos1_h100", "", "gke"),
    ("kosmos1_h100", "h100-mega:8x8", "gke"),
    ("kosmos1_h100", "h200:8x8", "gke"),
    ("kosmos1_h100", "b200:8x8", "gke"),
    ("kosmos1_v5p", "", "tpu-vm"),
    ("kosmos1_v5e", "", "tpu-vm"),
    ("kosmos1_v5p", "", "skypilot"),
    ("kosmos1_h100", "", "skypilot"),
]


def job(name: str, topology: str = "", **changes) -> JobDescription:
    """A shipped job, or one like it."""
    changes |= {"topology": topology} if topology else {}
    return replace(load_job(ROOT / f"launch/jobs/{name}.py"), **changes)


def golden(name: str, topology: str, target: str) -> Path:
    chip = f"-{topology.partition(':')[0]}" if topology else ""
    return GOLDENS / f"{name}{chip}.{target}{target_module(target).SUFFIX}"


def rendered(name: str, topology: str, target: str) -> str:
    return target_module(target).render(job(name, topology)).replace(sys.executable, "python")


if __name__ == "__main__":
    for case in CASES:
        golden(*case).write_text(rendered(*case))
        print("wrote", golden(*case))
