"""What the golden files show. After a wanted change, `python -m tests.launch.cases` writes them again."""

import sys
from dataclasses import replace
from pathlib import Path

from launch.command import target_module
from launch.job import JobDescription, load_job

ROOT = Path(__file__).parents[2]
GOLDENS = Path(__file__).parent / "goldens"
# Shipped job (or job and other topology) -> where it can run, and what.
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
    ("demo_cpu", "", "slurm", "serve"),
    ("demo_cpu", "", "local", "serve"),
    ("kosmos1_slurm", "h100:2x8", "slurm", "serve"),
    ("kosmos1_serve", "", "gke", "serve"),
    ("kosmos1_serve", "v5p:2x2x4", "gke", "serve"),
    ("kosmos1_serve", "h200:1x8", "gke", "serve"),
    ("kosmos1_serve", "b200:2x8", "gke", "serve"),
]


def job(name: str, topology: str = "", **changes) -> JobDescription:
    """A shipped job, or one like it."""
    changes |= {"topology": topology} if topology else {}
    return replace(load_job(ROOT / f"launch/jobs/{name}.py"), **changes)


def golden(name: str, topology: str, target: str, verb: str = "train") -> Path:
    chip = f"-{topology.partition(':')[0]}" if topology else ""
    return GOLDENS / f"{name}{chip}.{f'{verb}.' * (verb != 'train')}{target}{target_module(target).SUFFIX}"


def rendered(name: str, topology: str, target: str, verb: str = "train") -> str:
    described = job(name, topology)
    described = described.serving() if verb == "serve" else described
    return target_module(target).render(described).replace(sys.executable, "python")


if __name__ == "__main__":
    for case in CASES:
        golden(*case).write_text(rendered(*case))
        print("wrote", golden(*case))
