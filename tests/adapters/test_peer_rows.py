import pytest

from unsloth_accel.adapters.fsdp2.peer_fetch.peer_rows import rows_of


@pytest.mark.parametrize("rows", [[4, 4, 2], [4, 4, 0], [10]], ids=["uneven", "none on the last", "one rank"])
def test_an_embedding_is_looked_up_where_its_rows_are(rows: list[int]) -> None:
    import torch

    length = sum(rows)
    table = torch.arange(length * 3, dtype=torch.float32).view(length, 3)
    tokens = torch.tensor([[0, 3, 4], [7, length - 1, 0]])
    found = rows_of(tokens, list(table.split(rows)), length, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.nn.functional.embedding(tokens, table.bfloat16()))
    for outside in (-1, length):
        with pytest.raises(RuntimeError, match=f"outside of the embedding's {length} rows"):
            rows_of(torch.tensor([1, outside]), list(table.split(rows)), length, None)
