"""Checks that the files which the documents name exist: the targets of their links, and in code spans the paths from the top of
the repository (`src/cpu/layout.rs`, `bench/results/*.json`) and the names of sources (`zen4.rs`, `rows/mod.rs`). In the sources
themselves it checks the documents that comments and messages name.

    python tools/check_paths.py    exit status 1 where something is missing
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = sorted(
    p.name for p in ROOT.iterdir() if p.is_dir() and p.name not in ("target", "build", ".git") and not (p / "pyvenv.cfg").exists()
)
FILES = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file() and "target" not in p.parts]



def tracked():
    """The documents of the repository, without what else lies in a checkout (models and their documents)."""
    listed = subprocess.run(["git", "ls-files", "--", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        return [*ROOT.glob("*.md"), *(p for p in FILES if p.suffix == ".md")]
    return [p for line in listed.stdout.splitlines() if (p := ROOT / line).is_file()]


DOCUMENTS = sorted(tracked())
SOURCES = (".rs", ".cu", ".cuh", ".h", ".c", ".cpp", ".py", ".sh", ".apln", ".apls")
NAMES = {str(p.relative_to(ROOT)) for p in FILES} | {p.name for p in ROOT.iterdir()}

# What the commands of the documents make.
MADE = ("models/mine", "models/tiny")

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
SPAN = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"\.?[\w*-][\w.*-]*(?:/[\w.*-]+)*/?")
DOCUMENT = re.compile(r"(?<![\w/.-])[\w-]+(?:/[\w-]+)*\.md\b")


def is_named(word):
    """Whether a word of a code span is to be a file or a folder of the repository."""
    return PATH.fullmatch(word) and word not in MADE and (
        word.endswith(SOURCES) and not word.startswith("*") or "/" in word and word.split("/")[0] in FOLDERS
    )


def exists(name, folder):
    """From the top, from the folder of whoever names it, or as the end of a path."""
    if any(next(top.glob(name.rstrip("/")), None) for top in (ROOT, folder)):
        return True
    return any(path == name or path.endswith("/" + name) for path in NAMES)


def main():
    if sys.argv[1:]:
        sys.exit(__doc__)
    found, missing = 0, []

    def check(path, name):
        nonlocal found
        found += 1
        if not exists(name, path.parent):
            missing.append(f"{path.relative_to(ROOT)} names {name}, which is not there")

    for path in DOCUMENTS:
        text = path.read_text()
        for target in LINK.findall(text):
            if "://" not in target:
                check(path, target)
        for span in SPAN.findall(text):
            for word in filter(is_named, span.split()):
                check(path, word)
    for path in FILES:
        if path.suffix in SOURCES:
            for name in DOCUMENT.findall(path.read_text()):
                check(path, name)
    if missing:
        sys.exit("\n".join(missing))
    print(f"{found} files that documents and comments name are there")


main()
