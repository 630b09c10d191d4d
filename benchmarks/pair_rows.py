"""Rows of `benchmarks.pairs`: random words, of which a preference can be learned."""

from __future__ import annotations

import json
import random
from pathlib import Path

from unsloth_accel.files import write_atomically

LETTERS = {
    "prompt": "abcdefghijklmnopqrstuvwxyz     ",
    "chosen": "abcdefghijklmnopqr    ",
    "rejected": "jklmnopqrstuvwxyz    ",
}
"""Letters of random words; answers differ in theirs, so that a preference can be learned."""


def write_answers(path: Path, method: str, sizes: list[int], *, mixed: int = 0) -> None:
    """Write a row for each of `sizes`, the tokens of its longer side: a character is a token, and the end is one.

    `mixed` is the size of a micro-batch, of which half the rows change places with half of the next one's: every two of
    four, so that good and bad answers stay as many.
    """
    chance = random.Random(0)

    def text(name: str, size: int) -> str:
        return "".join(chance.choices(LETTERS[name], k=size))

    rows = []
    for number, size in enumerate(sizes):
        prompt, answer = text("prompt", size // 4), size - size // 4 - 1
        if method == "kto":
            good = number % 2 == 0
            side = text("chosen" if good else "rejected", answer)
            rows.append({"prompt": prompt, "completion": side, "label": good})
            continue
        # Full pairs hold no padding; others have a shorter rejected side.
        other = answer if size == max(sizes) else chance.randint(answer // 2, answer)
        rows.append({"prompt": prompt, "chosen": text("chosen", answer), "rejected": text("rejected", other)})
    if mixed:
        steps_of_two = [rows[first : first + 2 * mixed] for first in range(0, len(rows), 2 * mixed)]
        rows = [row for step in steps_of_two for turn in (0, 1) for index, row in enumerate(step)
                if index // 2 % 2 == turn]  # fmt: skip
    # Cells share it, and begin side by side.
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
