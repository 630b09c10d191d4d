"""open-r1's names give open-r1's numbers, TRL's names TRL's: where they differ, both are here."""

import math
from typing import Any

import pytest

from unsloth_accel.rewards.known import REWARDS

WHOLE = "<think>\nOne and one.\n</think>\n<answer>\n2\n</answer>"


def scored(name: str, *completions: str, arguments: dict[str, Any] | None = None, **columns: Any) -> list[Any]:
    function = REWARDS[name].made(arguments or {})
    chats = [[{"role": "assistant", "content": text}] for text in completions]
    ids = [list(text.encode()) for text in completions]
    scores = list(function(prompts=["p"] * len(chats), completions=chats, completion_ids=ids, **columns))
    if not REWARDS[name].messages_only and name != "length":
        texts = function(prompts=["p"] * len(chats), completions=list(completions), completion_ids=ids, **columns)
        assert list(texts) == scores, "a text is scored as the chat that holds it"
    return scores


@pytest.mark.parametrize(
    ("text", "whole", "thinks"),
    [
        (WHOLE, 1, 1),
        (f"{WHOLE}\nand more", 1, 1),  # `$` is the end of any line
        (f"{WHOLE} and more", 0, 1),
        (f" {WHOLE}", 0, 0),
        (WHOLE.replace("</think>\n<answer>", "</think><answer>"), 0, 1),
        (WHOLE.replace("<think>\n", "<think>"), 0, 1),
        ("<think>\nOne.\n</think>\n2", 0, 1),
        (f"<think>\n{WHOLE}", 1, 0),  # TRL takes one <think> only
        ("", 0, 0),
    ],
)
def test_format(text: str, whole: float, thinks: float) -> None:
    assert scored("format", text) == [whole]
    assert scored("think_format_reward", text) == [thinks]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (WHOLE, 1),
        ("", 0),
        ("<think>\nOne.", 0.25),
        (WHOLE.replace("\n</think>\n", "</think>"), 0.25 + 0.25),  # the line break before <answer> goes with it
        (f"{WHOLE}\n{WHOLE}", 0),  # each is there twice
        (f"<think>\n{WHOLE}", 0.75),
    ],
)
def test_tag_count(text: str, share: float) -> None:
    assert scored("tag_count", text) == [share]


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("", 0),
        ("1. Add.\n2. Carry.", 1),  # a number counts at the very beginning
        ("x 1. Add.", 0),
        ("- a\n- b\n* c", 2),  # a bullet behind a line break
        ("First, add. Next, carry.", 2),
        ("Step 1: a Step 2: b Step 30: c Finally, d", 4),
    ],
)
def test_reasoning_steps(text: str, signs: int) -> None:
    assert scored("reasoning_steps", text) == [min(1.0, signs / 3)]


def test_accuracy() -> None:
    texts = [
        r"It is \boxed{\frac{1}{2}}.",
        r"The final answer is $\frac{2}{4}$.",
        r"$\frac{1}{2}$",
        r"\boxed{\frac{1}{3}}",
        "",
    ]
    assert scored("accuracy", *texts, solution=["1/2"] * 5) == [1, 1, 0, 0, 0], "LaTeX alone is no answer"
    assert scored("accuracy", r"\boxed{3}", solution=["nothing to read"]) == [None]
    assert scored("accuracy_reward", *texts, solution=["1/2"] * 5) == [1, 1, 0, 0, 0]
    assert scored("accuracy_reward", r"\boxed{3}", solution=["nothing to read"]) == [None]
    thought = [r"</think> \boxed{3}", r"\boxed{3} </think> or so", r"\boxed{3}"]
    assert scored("reasoning_accuracy_reward", *thought, solution=["3"] * 3) == [1, 0, 0]


def test_an_answer_that_takes_long_is_wrong() -> None:
    tower = r"\boxed{" + "9^{" * 5 + "9" + "}" * 5 + "}"
    assert scored("accuracy", tower, r"\boxed{3}", arguments={"seconds": 1}, solution=["3", "3"]) == [0, 1]


def test_cosine_is_over_characters_and_has_the_recipes_defaults() -> None:
    right, wrong = r"\boxed{3}", r"\boxed{4}"
    long = right + "." * (500 - len(right))
    assert scored("cosine", right, long, solution=["$3$"] * 2) == pytest.approx(
        [0.5 + 0.25 * (1 + math.cos(math.pi * 9 / 1000)), 0.75]
    )
    # Of a wrong answer, the shortest has `min_value_wrong`, here the greater of the two.
    assert scored("cosine", wrong, solution=["$3$"]) == pytest.approx([-0.5 + 0.25 * (1 + math.cos(math.pi * 0.009))])
    assert scored("cosine", wrong, arguments={"min_value_wrong": -1.0, "max_len": 9}, solution=["$3$"]) == [-0.5]
    assert scored("cosine", right, solution=["no mathematics"]) == [1]
    assert scored("cosine", right, arguments={"max_len": 4.5}, solution=["$3$"]) == [1], "it goes on behind max_len"


def test_the_cosine_of_trl_is_over_tokens_and_ends_at_max_len() -> None:
    right = r"\boxed{3}"  # nine bytes, which are its tokens here
    assert scored("get_cosine_scaled_reward", right, arguments={"max_len": 18}, solution=["$3$"]) == [0.75]
    assert scored("get_cosine_scaled_reward", right, arguments={"max_len": 5}, solution=["$3$"]) == [0.5]
    assert scored("get_cosine_scaled_reward", right, arguments={"max_len": 5}, solution=["no mathematics"]) == [None]


def test_length_is_over_a_prompts_completions() -> None:
    function: Any = REWARDS["length"].made({})
    right, wrong = r"\boxed{3}", r"\boxed{4}"
    found = function(completions=[right, f"{right}.", f"{right}..", wrong, f"{wrong}.."], solution=["$3$"] * 5)
    assert found == [(9, True), (10, True), (11, True), (9, False), (11, False)]
    assert function.over_group(found) == [0.5, 0.0, -0.5, 0.0, -0.5]
    assert function.over_group(found[:1] * 3) == [0, 0, 0], "all are equally long"
    assert function(completions=[right], solution=["no mathematics"]) == [(9, True)]


@pytest.mark.parametrize(
    ("text", "penalty"),
    [("", 0), ("a b", 0), ("a b c", 0), ("a A a a a", -2 / 3), ("a b c a b c", -0.25)],
)
def test_repetition_is_of_words(text: str, penalty: float) -> None:
    assert scored("repetition_penalty", text) == pytest.approx([penalty])
    assert scored("repetition_penalty", text, arguments={"max_penalty": -2.0}) == pytest.approx([2 * penalty])


def test_the_repetition_of_trl_is_of_tokens() -> None:
    assert scored("get_repetition_penalty_reward", "aaaaa", "a b") == pytest.approx([-2 / 3, 0])


def test_code_format() -> None:
    code = WHOLE.replace("\n2\n", "\n```python\nprint(2)\n```\n")
    assert scored("code_format", code, WHOLE) == [1, 0]
    assert scored("code_format", code, arguments={"language": "(?:cpp|python)"}) == [1]
    assert scored("code_format", code, code, language=["cpp", "python"]) == [0, 1]
    assert scored("code_format", code, language=[None]) == [1]


@pytest.mark.parametrize("name", ["soft_overlong_punishment", "get_soft_overlong_punishment"])
def test_soft_overlong_punishment(name: str) -> None:
    limits = {"max_completion_len": 10, "soft_punish_cache": 4}
    texts = ["x" * count for count in (0, 6, 7, 10, 11)]
    assert scored(name, *texts, arguments=limits) == [0, 0, -0.25, -1, -1]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("repetition_penalty", {"max_penalty": 1}),
        ("repetition_penalty", {"ngram_size": 0}),
        ("cosine", {"max_len": 0}),
        ("code_format", {"language": "("}),
        ("soft_overlong_punishment", {"max_completion_len": 4, "soft_punish_cache": 5}),
    ],
)
def test_arguments_without_sense_are_refused(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(reversed(arguments))):
        REWARDS[name].made(arguments)


def test_what_a_message_lacks_is_an_empty_text() -> None:
    function = REWARDS["format"].made({})
    assert function(completions=[[{"role": "assistant", "content": None}], [], ""]) == [0, 0, 0]
