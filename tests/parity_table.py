"""How far each thing is from its oracle at worst: tests record it, and `make parity` writes docs/parity.md.

A test says `record("families", "Llama 3.1", "logits", 2e-6)`, or of things counted
`record("templates", "llama3_instruct", "ids", 0, of=300)`. Nothing happens unless PARITY names a file; each
record is a line of it, and as a program this puts the tables of FILE into the page.
"""

import json
import os
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "parity.md"
COLUMNS = {
    "families": ("logits", "packed", "gradient", "generation", "files"),
    "templates": ("ids", "spans", "export"),
}
Cell = tuple[float, int | None]  # the worst difference, or how many differ of how many


def record(table: str, row: str, column: str, difference: float, *, of: int | None = None) -> None:
    """Note how far `row` is from its oracle in `column`; the worst of several is shown, or their sum."""
    assert column in COLUMNS[table]
    if where := os.environ.get("PARITY"):
        with Path(where).open("a", encoding="utf-8") as file:
            file.write(json.dumps([table, row, column, float(difference), of]) + "\n")


def read_page() -> dict[str, dict[str, dict[str, str]]]:
    """What docs/parity.md shows: table -> row -> column -> cell."""
    page, tables = PAGE.read_text(encoding="utf-8"), {}
    for name, columns in COLUMNS.items():
        lines = _section(page, name).strip().splitlines()[2:]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        tables[name] = {row[0]: dict(zip(columns, row[1:], strict=True)) for row in cells}
    return tables


def write_page(records: Path) -> None:
    """Put what was recorded into the page; a table that has no record stays as it is."""
    found: dict[str, dict[str, dict[str, Cell]]] = {name: {} for name in COLUMNS}
    for line in records.read_text(encoding="utf-8").splitlines():
        table, row, column, difference, of = json.loads(line)
        cells = found[table].setdefault(row, {})
        cells[column] = _together(cells.get(column), (difference, of))
    page = PAGE.read_text(encoding="utf-8")
    for name, rows in found.items():
        if rows:
            page = page.replace(_section(page, name), f"\n{_drawn(name, rows)}\n")
    PAGE.write_text(page, encoding="utf-8")


def _together(before: Cell | None, new: Cell) -> Cell:
    if before is None:
        return new
    if before[1] is None or new[1] is None:
        return max(before[0], new[0]), None
    return before[0] + new[0], before[1] + new[1]


def _drawn(name: str, rows: dict[str, dict[str, Cell]]) -> str:
    columns = COLUMNS[name]
    lines = ["| |" + "".join(f" {column} |" for column in columns), "|---|" + "---|" * len(columns)]
    for row, cells in sorted(rows.items()):
        lines.append(f"| {row} |" + "".join(f" {_cell(cells.get(column))} |" for column in columns))
    return "\n".join(lines)


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "—"
    difference, of = cell
    return f"{difference:.1g}" if of is None else f"{difference:g} of {of:,}"


def _section(page: str, name: str) -> str:
    return page.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
