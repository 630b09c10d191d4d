"""Write answers-train.jsonl and answers-eval.jsonl: questions about the chemical elements, each with two answers.

    python examples/data/make_answers.py

Both answers are right. The chosen one is polite and comes to the point; the rejected one rambles, or is curt, so that
neither the longer nor the shorter answer is always the better. The held-out file has other elements, other wordings of
the questions and other wordings of both answers, so a model that prefers the chosen ones there has learned the manner.
"""

import json
from pathlib import Path

from make_elements import ELEMENTS, HELD_OUT, LAST_OF_PERIOD

QUESTIONS = {
    "train": (
        ("What is the symbol of {name}?", "the symbol of {name} is {symbol}"),
        ("Which atomic number does {name} have?", "the atomic number of {name} is {number}"),
        ("In which period is {name}?", "{name} is in period {period}"),
    ),
    "eval": (
        ("How do chemists write {name}?", "chemists write {name} as {symbol}"),
        ("How many protons are in an atom of {name}?", "an atom of {name} has {number} protons"),
        ("Where in the periodic table would I look for {name}?", "you will find {name} in period {period}"),
    ),
}
CHOSEN = {
    "train": (
        "Thank you for asking: {fact}. I hope this helps!",
        "Gladly! {fact}. Please ask if you need more.",
        "With pleasure: {fact}. Let me know if I can help further.",
        "I am happy to say that {fact}. Have a nice day!",
    ),
    "eval": (
        "Of course, and thanks: {fact}. You are welcome to ask again!",
        "I am glad to help: {fact}. Best wishes!",
        "Certainly! {fact}. I hope that is useful.",
    ),
}
REJECTED = {
    "train": (
        "Well, where to begin, people say a lot, but anyway, as far as I remember, {fact}, or so it seems to me.",
        "So, hmm, let me think, that is a long story, and I was never sure, but somehow {fact}.",
        "Obviously {fact}. Look it up.",
        "Seriously? {fact}.",
    ),
    "eval": (
        "Hmm, I could go on for hours about all of it, but then again I suppose that {fact}.",
        "Why do you even ask? {fact}.",
        "Oh well, people talk and talk, me too, and somehow or other {fact}, but never mind.",
    ),
}


def main() -> None:
    names = [pair.split() for line in ELEMENTS.split("\n") for pair in line.split("|") if pair]
    rows: dict[str, list[str]] = {"train": [], "eval": []}
    for number, (name, symbol) in enumerate(names, start=1):
        period = 1 + sum(number > last for last in LAST_OF_PERIOD)
        facts = {"name": name, "symbol": symbol, "number": number, "period": period}
        split = "eval" if number in HELD_OUT else "train"
        # One of the three questions is enough to examine an element.
        asked = QUESTIONS[split] if split == "train" else QUESTIONS[split][number % 3 :][:1]
        for question, fact in asked:
            count, said = len(rows[split]), fact.format(**facts)
            # Every wording of the one answer meets every wording of the other.
            chosen = CHOSEN[split][count % len(CHOSEN[split])]
            rejected = REJECTED[split][count // len(CHOSEN[split]) % len(REJECTED[split])]
            row = {
                "prompt": [{"role": "user", "content": question.format(**facts)}],
                "chosen": [{"role": "assistant", "content": chosen.format(fact=said)}],
                "rejected": [{"role": "assistant", "content": rejected.format(fact=said)}],
            }
            rows[split].append(json.dumps(row))
    for split, lines in rows.items():
        path = Path(__file__).with_name(f"answers-{split}.jsonl")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path.name}: {len(lines)} rows")


if __name__ == "__main__":
    main()
