from unsloth_accel.report import messages


def test_the_same_message_is_shown_once() -> None:
    line = {"event": "warning", "source": "memory", "message": "4 % is free. Fix: fewer rows", "free_gib": 3.1}
    lines = [{**line, "rank": rank, "step": step} for step in range(10, 20) for rank in (1, 3)]
    error = {"event": "error", "source": "rank_sync", "message": "ranks differ", "rank": 0, "step": 7}
    first, second = messages.grouped([*lines, error])
    assert (first.severity, first.source, first.where) == ("error", "rank sync", "rank 0, step 7")
    assert (second.message, second.fix) == ("4 % is free.", "fewer rows")
    assert second.where == "ranks 1, 3, steps 10 to 19, 20 times"
    assert second.more == (("free gib", "3.1"),)
