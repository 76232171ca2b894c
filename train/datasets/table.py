"""The CSV files that some layouts state their labels and splits in."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from edge.errors import DataError


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return every row's line number and its values, stripped, in these columns; others are not looked at.

    Raises:
        DataError: the file cannot be read as CSV, lacks a column, or lists nothing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            absent = [name for name in columns if name not in (reader.fieldnames or ())]
            if absent:
                raise DataError(f"{path} has no column {', '.join(absent)}", f"columns: {','.join(columns)}")
            rows = [(reader.line_num, {name: (row[name] or "").strip() for name in columns}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}", "restore it from the archive") from error
    if not rows:
        raise DataError(f"{path} lists no images", "restore it from the archive")
    return rows
