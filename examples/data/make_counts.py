"""Write counts-train.jsonl and counts-eval.jsonl: sentences that say a number, and a question for it.

    python examples/data/make_counts.py

Asked so, SmolLM2-135M-Instruct rambles: it calculates, explains, and seldom comes to an end. The number that a right
answer names stands beside the prompt as `answer`, for a reward to read. The held-out file has other names and things.
"""

import json
import random
from pathlib import Path

SYSTEM = "You count things."
NAMES = {
    "train": "Ann Ben Carla David Eva Frank Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul",
    "eval": "Rosa Sam Tina Victor",
}
THINGS = {
    "train": "apples books cats coins cups dogs eggs hats keys lamps maps pens plates ships stamps trees",
    "eval": "chairs horses letters shirts",
}
WORDINGS = (
    "{name} has {number} {things}. How many {things} does {name} have?",
    "There are {number} {things} in the house of {name}. How many {things} are there?",
    "{name} bought {number} {things} today. How many {things} did {name} buy?",
)
EACH = {"train": 8, "eval": 4}
"""Rows for each name."""


def main() -> None:
    draw = random.Random(0)
    for split, each in EACH.items():
        rows = []
        for name in NAMES[split].split():
            for things in draw.sample(THINGS[split].split(), each):
                number = draw.randint(2, 30)
                question = draw.choice(WORDINGS).format(name=name, number=number, things=things)
                prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
                rows.append(json.dumps({"prompt": prompt, "answer": str(number)}))
        path = Path(__file__).with_name(f"counts-{split}.jsonl")
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{path.name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
