"""Writes the tables of committed results (bench/results/*.json) into the documents, between markers:

    <!-- results zen5-products -->
    | bits | …
    <!-- end of results -->

    python tools/render_results.py            writes them
    python tools/render_results.py --check    writes nothing; exit status 1 where a document says something else

A file of results has the machine, the conditions, the command that measures them again, and tables: `columns` (heading and key of
each) and `rows` (objects). `<!-- results FILE TABLE -->` names one of several `tables`; a file with one table has it at its top.
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- results ([\w.-]+)(?: (\w+))? -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
REQUIRED = ("machine", "conditions", "command")


def cell(value):
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value)


def table(name, part):
    path = ROOT / "bench/results" / f"{name}.json"
    results = json.loads(path.read_text())
    missing = [key for key in REQUIRED if not results.get(key)]
    if missing:
        sys.exit(f"{path.name} does not say its {', '.join(missing)}")
    if part:
        results = results["tables"][part]
    headings = [heading for heading, _ in results["columns"]]
    rows = [[cell(row[key]) for _, key in results["columns"]] for row in results["rows"]]
    line = lambda cells: "| " + " | ".join(cells) + " |\n"
    # An empty cell is one space wide.
    tidy = lambda text: re.sub(r"\|  (?=\|)", "| ", text)
    return tidy(line(headings)) + "|" + "---|" * len(headings) + "\n" + "".join(tidy(line(row)) for row in rows)


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    found, stale = 0, []
    for document in sorted((ROOT / "docs").glob("*.md")):
        text = document.read_text()

        def fresh(match):
            nonlocal found
            found += 1
            return match.group(1) + table(match.group(2), match.group(3)) + match.group(5)

        rendered = BLOCK.sub(fresh, text)
        if rendered == text:
            continue
        if check:
            stale.append(document.name)
        else:
            document.write_text(rendered)
    if stale:
        sys.exit(f"{', '.join(stale)} does not show the committed results: python tools/render_results.py writes them")
    print(f"{found} tables are those of bench/results")


main()
