"""Rows, and files of them in every form."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from datasets import Dataset

ALPACA = [{"instruction": f"Name number {i}", "input": "é" * (i % 2), "output": str(i)} for i in range(7)]
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the form that the file's name asks for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows) if path.suffix in (".parquet", ".arrow", ".feather") else None
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".feather":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            made = csv.DictWriter(file, list(rows[0]))
            made.writeheader()
            made.writerows(rows)
    else:
        text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    return path


def rows(*texts: str) -> Dataset:
    return Dataset.from_list([{"text": text} for text in texts])
