"""A real corpus of three sources from three Debian packages: configs/debian.py trains on it, docs/data.md walks there.

    python configs/corpora/debian.py corpora/debian

`apt-get download` fetches the packages (175 MB, no root needed), `dpkg-deb -x` unpacks them. The Debian handbook is
pages with screenshots in 26 languages, Python's documentation is text, and openclipart is drawings, whose names and
folders say what they show: "animals/birds/owl_line_art_01.png" becomes "animals, birds: owl line art."
"""

import argparse
import csv
import re
import subprocess
from pathlib import Path

PACKAGES = ("debian-handbook", "openclipart-png", "python3.11-doc")


def caption(path: Path) -> str:
    """What a drawing's folders and name say, without its number."""
    name = re.sub(r"[_\d]+$", "", path.stem) or path.stem
    words = [part.replace("_", " ").replace("-", " ").lower().strip() for part in (*path.parts[:-1], name)]
    return f"{', '.join(words[:-1])}: {' '.join(words[-1].split())}."


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a folder")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=out, check=True)
    for package in sorted(out.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, out], check=True)
    drawings = out / "usr/share/openclipart/png"
    files = sorted(path.relative_to(drawings) for path in drawings.rglob("*.png"))
    with open(drawings / "captions.tsv", "w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["file", "caption"])
        table.writerows([str(path), caption(path)] for path in files)
    print(f"{len(files):,} drawings in {drawings}; now: kosmos data prepare --config configs/debian.py:{out}")


if __name__ == "__main__":
    main()
