"""Every measured number in a table of README.md, docs/ and benchmarks/ is in a committed JSON file.

The section of the table links the file. Rows and columns are lines of numbers of one kind: all numbers of a row, or the
first (second, ...) numbers of the cells of a column. A line is traced if its numbers have names in common in the file:
one or two of the keys above them, such as `jf`, or item 5 of `layers`, or the object that they are in. A number is
traced if its row or its column is, so that it is not excused by an equal number that means something else; a number
with an interval must also be in one object with it.
"""

import json
import random
import re
from bisect import bisect
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations_with_replacement
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
NUMBER = re.compile(r"(?<![\w.,])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w.,]*\d)")
INTERVAL = re.compile(r"([+-]?\d+(?:\.\d+)?)(?: %| ms)? \[([+-]?\d+(?:\.\d+)?), ([+-]?\d+(?:\.\d+)?)\]")
LARGEST = 48  # numbers in a part of a file that may explain a line; of a larger one, any number would be found
SMALL, FEWEST = (
    12,
    3,
)  # a part of at most SMALL numbers may also explain FEWEST of a line whose others are of other parts
# Pages whose tables another test regenerates, or whose numbers are the paper's, of other software, or of arithmetic.
ELSEWHERE = {
    "docs/results.md": "tests/studies/test_probing_page.py writes it again from docs/studies/probing",
    "docs/reproduce.md": "the paper's numbers and `toto plan`'s (tests/test_reproduce_doc.py)",
    "docs/datasets.md": "the paper's numbers and arithmetic",
    "docs/data_licences.md": "sizes of media",
    "docs/log.md": "a diary: its entries are dated, and recorded by hand",
}
# Sections of docs/ whose tables have decimals or percentages that are not measurements.
NOT_MEASURED = {
    ("docs/continuations.md", "Measures at each horizon"),
    ("docs/prompting.md", "Measures"),
    ("docs/rotation.md", "The world: toyworld:turntable"),
    ("docs/tracking.md", "The settings"),
}
# Tables whose output was not kept: (page, section). Each says "Recorded by hand, commit ...". Measure them again with
# --json, keep the file, link it, and take them from this list; nothing is to be added.
BY_HAND = {
    ("benchmarks/data.md", "Start-up"),
    ("benchmarks/data.md", "Against `datasets`"),
    ("benchmarks/data.md", "2 cores, shared with a training run, PyAV 18.1.0, Pillow 13.0.0, 2026-11-28"),
    ("benchmarks/generate.md", "One core of a shared machine, 2026-11-24"),
    ("benchmarks/generate.md", "2 cores, quiet, 2026-11-24 (`--rounds 1`, stopped by the clock before its last draw)"),
    ("benchmarks/generate.md", "What a step is made of (batch 1 / batch 8, one core, alone)"),
    ("benchmarks/parallel.md", "toto-motion, 8 frames after 8, the most likely code, 2026-11-29"),
    ("benchmarks/parallel.md", "toto-nano, 1 frame of 256 after 4, the most likely code, 2026-11-29"),
    ("benchmarks/parallel.md", "Rules and drafts, 2026-11-28"),
    ("benchmarks/probe.md", "A probe of every layer, against a probe of the last"),
    ("benchmarks/resume.md", "2 cores (shared with other work), torch 2.13.0, accelerate 1.15.0, 2026-11-24"),
    ("benchmarks/tokenizer.md", "Pictures to codes: the dVAE against OpenAI's package"),
    ("benchmarks/tokenizer.md", "The same with bfloat16, 2026-11-26"),
    ("benchmarks/train.md", "2 cores, AVX512-BF16 without AMX, 2026-11-24 (`--rounds 2`, 11 minutes)"),
    ("benchmarks/train.md", "2 cores, AMD EPYC with AVX512-BF16, 2026-11-26 (`--rounds 2`)"),
    ("docs/scaling.md", "What will it cost: `toto plan`"),
}


@dataclass(frozen=True)
class Table:
    """A table of a page. section: heading and all text up to the next heading. below: the line after it."""

    page: Path
    heading: str
    head: str
    rows: tuple[tuple[str, ...], ...]
    section: str
    below: str

    @property
    def name(self) -> str:
        return str(self.page.relative_to(ROOT))

    @property
    def id(self) -> str:
        return f"{self.name}, {self.heading}: {self.head[:40]}"

    @property
    def is_measured(self) -> bool:
        """All of benchmarks/ but the list of its files; elsewhere tables with decimals or percentages."""
        if self.name == "benchmarks/README.md" or (self.name, self.heading) in NOT_MEASURED:
            return False
        return self.name.startswith("benchmarks/") or any(
            re.search(r"\d\.\d|\d %", re.sub(r"`[^`]*`", "", cell)) for row in self.rows for cell in row
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """Committed JSON files that the section links."""
        links = re.findall(r"\]\(([^)]+\.json)\)", self.section)
        return tuple(dict.fromkeys((self.page.parent / link).resolve() for link in links))


def tables(page: Path) -> list[Table]:
    lines, found, heading, begin = page.read_text().splitlines(), [], "", 0
    fenced = False
    ends = []  # of sections
    for number, line in enumerate([*lines, "# end"]):
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            ends.append(number)
    for begin, end in zip([0, *ends], ends, strict=False):
        heading, number = lines[begin].lstrip("# "), begin
        while number < end:
            rows = number
            while rows < end and lines[rows].startswith("|"):
                rows += 1
            if rows > number + 2:
                cells = tuple(tuple(line.strip("|").split("|")[1:]) for line in lines[number + 2 : rows])
                below = " ".join(lines[rows : rows + 2]).strip()
                found.append(Table(page, heading, lines[number], cells, "\n".join(lines[begin:end]), below))
            number = max(rows, number + 1)
    return found


TABLES = [table for page in PAGES for table in tables(page)]
MEASURED = [table for table in TABLES if table.is_measured and table.name not in ELSEWHERE]
TRACED = [table for table in MEASURED if table.files]


def leaves(node, path: tuple = ()):
    """(path, number) of all numbers of a JSON value and of the means of its lists; of long lists, their means alone."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
        if {"j", "f"} <= node.keys() and "jf" not in node:  # J&F, which is their mean
            yield (*path, "jf"), (node["j"] + node["f"]) / 2
    elif isinstance(node, list):
        if len(node) > 2 and all(isinstance(value, (int, float)) for value in node):
            yield (*path, "mean"), sum(node) / len(node)
        if len(node) <= LARGEST:
            for key, value in enumerate(node):
                yield from leaves(value, (*path, key))
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        yield path, float(node)


def scales(value: float) -> tuple:
    """A number stands in a text as it is, in percent, or (large ones) in millions."""
    return (1, 100) if abs(value) < 1e5 else (1, 1e-6)


def names(path: tuple) -> set:
    """What a number is called: the keys above it, and the items of lists with the key of the list."""
    found, key = set(), None
    for step in path:
        key = step if not isinstance(step, int) else (key, step)
        found.add(key)
    return found


class Source:
    """The numbers of JSON files, by the names that they share: one or two of those on their paths."""

    def __init__(self, files: tuple[Path, ...]):
        self.scaled, self.parts, self.inside, self.size = [], [], [], Counter()
        for path, value in (leaf for file in files for leaf in leaves(json.loads(file.read_text()), (file,))):
            self.scaled += [(value * scale, len(self.parts)) for scale in scales(value)]
            last = max(k for k, step in enumerate(path) if not isinstance(step, int))
            self.inside.append(path[:last])
            called = sorted({*names(path), path[:last]}, key=str)
            self.parts.append({frozenset(pair) for pair in combinations_with_replacement(called, 2)})
            self.size.update(self.parts[-1])
        self.scaled.sort()
        self.of = cache(self._of)

    def found(self, text: str) -> list[int]:
        """The numbers of which this is a rounding."""
        value, half = float(text.replace(",", "")), 0.5 * 10 ** -len(text.partition(".")[2]) * 1.0001
        first, last = bisect(self.scaled, (value - half,)), bisect(self.scaled, (value + half, len(self.parts)))
        return [number for _, number in self.scaled[first:last]]

    def _of(self, text: str) -> set:
        """The parts that have this number."""
        return {part for number in self.found(text) for part in self.parts[number] if self.size[part] <= LARGEST}

    def objects(self, text: str) -> set[tuple]:
        """The JSON objects that have this number, also in a list."""
        return {self.inside[number] for number in self.found(text)}

    def untraced(self, rows) -> list[str]:
        """The numbers of a table that are in no traced line."""
        numbers, lines = {}, defaultdict(list)
        for r, row in enumerate(rows):
            for c, cell in enumerate(row):
                for k, text in enumerate(NUMBER.findall(re.sub(r"`[^`]*`|\]\([^)]*\)|layers? [\d, ]+", "", cell))):
                    numbers[r, c, k] = text
                    for line in (("row", r), ("column", c, k)):
                        lines[line].append((r, c, k))
        traced = set()
        for places in lines.values():
            shared = Counter(part for place in places for part in self.of(numbers[place]))
            for part, count in shared.items():
                if count == len(places) or (count >= FEWEST and self.size[part] <= SMALL):
                    traced.update(place for place in places if part in self.of(numbers[place]))
        lone = [text for place, text in numbers.items() if place not in traced]
        intervals = (match for row in rows for cell in row for match in INTERVAL.finditer(cell))
        return lone + [found[0] for found in intervals if not set.intersection(*map(self.objects, found.groups()))]


source = lru_cache(Source)


@pytest.mark.parametrize("table", MEASURED, ids=lambda table: table.id)
def test_a_table_names_its_source(table):
    by_hand = (table.name, table.heading) in BY_HAND
    assert bool(table.files) != by_hand, "link the JSON file of this table in its section"
    assert all(file.is_file() and file.is_relative_to(ROOT) for file in table.files)
    assert by_hand == bool(re.match(r"Recorded by hand, commit [0-9a-f]{7}\b", table.below))


@pytest.mark.parametrize("table", TRACED, ids=lambda table: table.id)
def test_every_number_is_in_the_linked_file(table):
    assert not source(table.files).untraced(table.rows)


def test_the_list_of_tables_by_hand_only_shrinks():
    """A section on the list that is gone, or that links a file by now, is taken from it."""
    assert {(table.name, table.heading) for table in MEASURED if not table.files} == BY_HAND
    assert len(BY_HAND) <= 17
    assert {(table.name, table.heading) for table in TABLES} >= NOT_MEASURED


def test_most_changed_numbers_are_noticed():
    """The last digit of numbers, drawn with a seed; a few of the changed ones are in the file under the same names."""
    rng, noticed = random.Random(0), []
    for table in TRACED:
        places = [
            (r, c, match)
            for r, row in enumerate(table.rows)
            for c, cell in enumerate(row)
            for match in NUMBER.finditer(cell)
            if not re.search("`|]\\(|layer", cell)
        ]
        for r, c, match in rng.sample(places, min(10, len(places))):
            rows = [list(row) for row in table.rows]
            digit, end = (int(match[0][-1]) + rng.randint(1, 9)) % 10, match.end()
            rows[r][c] = f"{rows[r][c][: end - 1]}{digit}{rows[r][c][end:]}"
            noticed.append(bool(source(table.files).untraced(rows)))
    assert len(noticed) >= 200 and sum(noticed) >= 0.75 * len(noticed)
