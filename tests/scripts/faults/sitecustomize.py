"""Breaks training in launched processes, for tests of what must notice: put this directory on PYTHONPATH.

`TRAINING_FAULT` says how, in the ranks of a run with several processes:
`local`: gradients stay each rank's own. `sum`: they are summed over ranks and not averaged.
`rate`: the learning rate is 1 % higher.
`stopped`: rank 1 is slow in its loader for 7 s, and in an evaluation; then it stops, as by SIGSTOP.
`repeated`: in an epoch's last step a rank that has no row left learns one again.
`raises`: the loader of rank 1 raises when it has rows for two steps.
"""

import os

FAULT = os.environ.get("TRAINING_FAULT")

if FAULT and int(os.environ.get("WORLD_SIZE", "1")) > 1:
    import torch
    from torch.distributed import GradBucket, all_reduce
    from torch.nn.parallel import DistributedDataParallel

    def local(state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def summed(state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        return all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])

    if FAULT in ("local", "sum"):
        wrap = DistributedDataParallel.__init__

        def broken(self, *arguments, **options):  # type: ignore[no-untyped-def]
            wrap(self, *arguments, **options)
            self.register_comm_hook(None, local if FAULT == "local" else summed)

        DistributedDataParallel.__init__ = broken
        reduce = torch.distributed.all_reduce

        def reduced(tensor, *arguments, **options):  # type: ignore[no-untyped-def]
            """Of all gradients at once, as the adapter for lack of memory has it, which then divides by the ranks."""
            gradients = tensor.numel() > 1000 and tensor.is_floating_point()
            work = None if gradients and FAULT == "local" else reduce(tensor, *arguments, **options)
            if gradients:
                tensor.mul_(torch.distributed.get_world_size())
            return work

        torch.distributed.all_reduce = reduced
    if FAULT == "repeated":
        from torch.utils.data._utils.fetch import _MapDatasetFetcher

        fetch = _MapDatasetFetcher.fetch

        def again(self, rows):  # type: ignore[no-untyped-def]
            """Rows to be masked come by negative numbers (adapters.token_balance)."""
            return fetch(self, [row if row >= 0 else -1 - row for row in rows])

        _MapDatasetFetcher.fetch = again
    if FAULT == "raises" and os.environ["RANK"] == "1":
        from torch.utils.data._utils.fetch import _MapDatasetFetcher

        left = [1, 1]
        fetch = _MapDatasetFetcher.fetch

        def wanting(self, rows):  # type: ignore[no-untyped-def]
            if not left:
                raise KeyError("input_idz")
            left.pop()
            return fetch(self, rows)

        _MapDatasetFetcher.fetch = wanting
    if FAULT == "stopped" and os.environ["RANK"] == "1":
        import signal
        import sys
        import time

        from torch.utils.data._utils.fetch import _MapDatasetFetcher

        fetched = []
        fetch = _MapDatasetFetcher.fetch

        def disturbed(self, rows):  # type: ignore[no-untyped-def]
            fetched.append(len(rows))
            if len(fetched) == 1:
                trainer = sys.modules["transformers.trainer"].Trainer
                plain = trainer.get_eval_dataloader

                def slow(*arguments, **options):  # type: ignore[no-untyped-def]
                    time.sleep(7)
                    return plain(*arguments, **options)

                trainer.get_eval_dataloader = slow
            if len(fetched) == 3:
                time.sleep(7)
            if len(fetched) == 12:
                os.kill(os.getpid(), signal.SIGSTOP)
            return fetch(self, rows)

        _MapDatasetFetcher.fetch = disturbed
    if FAULT == "rate":
        make = torch.optim.AdamW.__init__

        def faster(self, params, lr=1e-3, **options):  # type: ignore[no-untyped-def]
            make(self, params, lr=1.01 * lr, **options)

        torch.optim.AdamW.__init__ = faster
