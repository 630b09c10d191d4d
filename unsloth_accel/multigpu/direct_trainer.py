"""MultiGPUTrainer: a small training loop on Accelerator, one process per GPU, under any strategy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..adapters import rank_checks
from ..adapters.ddp_settings import choose_settings
from ..adapters.saving import save
from ..errors import ConfigError, Problem, first_line, raise_errors
from ..training.accelerator_loop import prepare
from .aggregation import AggregationMethod, StepTokens, hook_of
from .launched_count import settled_count
from .patched import say
from .sharding import shard_batch

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

Batch = Mapping[str, Any]


class MultiGPUTrainer:
    """Trains a model that Unsloth loaded on batches of input_ids, attention_mask and labels, each (rows, tokens).

    `num_gpus`: as in `enable_multi_gpu`; strategy, devices and precision are those of the launch.
    `optimizer_config`, `scheduler_config`: {"class": …, "kwargs": {…}}; the optimizer's class gets the trainable
    parameters, AdamW by default, the scheduler's gets the optimizer and makes one step per optimizer step.
    `aggregation_method`: how gradients of several ranks become one; `AggregationMethod` says what each means for the
    learning rate. `gradient_accumulation_steps`: micro-batches per optimizer step. `max_grad_norm`: norm to which a
    step's gradients are clipped, 0 for none. `mixed_precision`: `no`, `fp16` or `bf16`; by default the launch's.
    Raises `ConfigError` for what can't be had, `LaunchError` where the processes are still to be launched.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        num_gpus: int | None = None,
        optimizer_config: Mapping[str, Any] | None = None,
        aggregation_method: AggregationMethod | str = AggregationMethod.MEAN,
        *,
        scheduler_config: Mapping[str, Any] | None = None,
        gradient_accumulation_steps: int = 1,
        max_grad_norm: float = 1.0,
        mixed_precision: str | None = None,
    ) -> None:
        raise_errors(
            [
                *_model_problems(model),
                *_class_problems("optimizer_config", optimizer_config),
                *_class_problems("scheduler_config", scheduler_config),
                *_number_problems(aggregation_method, gradient_accumulation_steps, max_grad_norm, mixed_precision),
            ]
        )
        self.num_processes = settled_count(num_gpus)
        self.model = model
        self.aggregation_method = AggregationMethod(aggregation_method)
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.max_grad_norm = max_grad_norm
        self.steps = 0
        """Optimizer steps that were made."""
        self._optimizer_config = {"class": None, "kwargs": {}, **(optimizer_config or {})}
        self._scheduler_config = scheduler_config
        self._mixed_precision = mixed_precision
        self._accelerator: Accelerator | None = None
        self._optimizer: Any = None
        self._scheduler: Any = None
        self._tokens = StepTokens()
        self._loaders: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    @property
    def accelerator(self) -> Accelerator:
        """The Accelerator; `setup` makes it."""
        self.setup()
        assert self._accelerator is not None
        return self._accelerator

    def setup(self) -> None:
        """Make optimizer and scheduler and prepare them with the model; the first step does it too. Once is enough."""
        if self._accelerator is not None:
            return
        import torch
        from accelerate import Accelerator

        try:
            accelerator = Accelerator(mixed_precision=self._mixed_precision)
        except ValueError as error:  # one that was made before has another precision, or the device hasn't this one
            key, value, fix = "mixed_precision", self._mixed_precision, "leave it out: the launch's"
            raise ConfigError(Problem(key=key, value=value, consequence=first_line(error), fix=fix)) from None
        if self._mixed_precision == "fp16" and accelerator.device.type == "cpu":
            say("mixed_precision=fp16 is for GPUs: this CPU computes in the precision in which the model was loaded")
        self._check_aggregation()
        config = self._optimizer_config
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = _made("optimizer_config", config["class"] or torch.optim.AdamW, parameters, config["kwargs"])
        objects = [self.model, optimizer]
        if self._scheduler_config:
            kind, named = self._scheduler_config["class"], self._scheduler_config.get("kwargs", {})
            objects.append(_made("scheduler_config", kind, optimizer, named))
        choose_settings(accelerator)
        self.model, self._optimizer, *scheduler = prepare(accelerator, *objects)
        self._scheduler = scheduler[0] if scheduler else None
        self._accelerator = accelerator
        # Where DDP averages, it does so by itself; MEAN needs no hook of ours.
        if accelerator.num_processes > 1 and self.aggregation_method != AggregationMethod.MEAN:
            ddp: Any = self.model
            ddp.register_comm_hook(None, hook_of(self.aggregation_method, self._tokens))

    def train_epoch(self, dataloader: Iterable[Batch]) -> dict[str, Any]:
        """Train on every batch of `dataloader` once, on every rank; returns the epoch's figures over all ranks.

        A DataLoader's rows are shared out: each rank takes batches of its own, and a step has batch_size × accumulation
        × ranks rows. Rows with which Accelerate fills up the last step aren't learned again. Of any other iterable
        every rank takes its part of each batch (`train_step`).

        Figures: `loss` (mean per token, in nats), `steps`, `tokens` (learned), `rows`, `grad_norm` (mean over steps),
        `learning_rate` (last), `seconds`, `tokens_per_second`, `seconds_by_rank`.
        """
        self.setup()
        self.model.train()
        started = time.perf_counter()
        done: list[dict[str, float]] = []
        batches = self._own_batches(dataloader)
        while window := list(islice(batches, self.gradient_accumulation_steps)):
            done.append(self._step(window))
        if not done:
            consequence = "has no batch: nothing would be trained."
            raise ConfigError(Problem(key="dataloader", consequence=consequence, fix="a DataLoader with rows"))
        seconds = time.perf_counter() - started
        tokens = sum(step["tokens"] for step in done)
        return {
            "loss": sum(step["loss"] * step["tokens"] for step in done) / max(tokens, 1),
            "steps": len(done),
            "tokens": int(tokens),
            "rows": int(sum(step["rows"] for step in done)),
            "grad_norm": sum(step["grad_norm"] for step in done) / len(done),
            "learning_rate": done[-1]["learning_rate"],
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "seconds_by_rank": self._gathered([seconds]).flatten().tolist(),
        }

    def train_step(self, batch: Batch) -> dict[str, float]:
        """Make one optimizer step of `batch`, the whole step's rows, of which this rank takes its part.

        Every rank gives the same batch. The parts may be uneven, and without rows. Returns `loss`, `tokens`, `rows`,
        `grad_norm` and `learning_rate`, over all ranks.
        """
        self.setup()
        self.model.train()
        own = self._part_of(batch)
        parts = range(self.gradient_accumulation_steps)
        return self._step([_part(own, len(parts), number) for number in parts])

    def evaluate(self, dataloader: Iterable[Batch]) -> dict[str, float]:
        """Return `loss` (mean per token of all held-out rows, in nats), `perplexity`, `tokens` and `rows`.

        Each row counts once, on any number of ranks; every rank calls it.
        """
        import torch

        self.setup()
        self.model.eval()
        sums = [0.0, 0.0, 0.0]
        for batch in self._own_batches(dataloader):
            tokens, rows = self._counts(batch)
            with torch.no_grad():
                loss = self.model(**batch, num_items_in_batch=max(tokens, 1)).loss
            sums = [sums[0] + float(loss) * max(tokens, 1), sums[1] + tokens, sums[2] + rows]
        self.model.train()
        total, tokens, rows = self._gathered(sums).sum(dim=0).tolist()
        mean = total / max(tokens, 1)
        return {"loss": mean, "perplexity": math.exp(min(mean, 700)), "tokens": tokens, "rows": rows}

    def save(self, directory: str | Path, *, tokenizer: Any = None) -> Path:
        """Save the trained adapter as `unsloth_accel.save` does, on every rank; returns its directory."""
        self.setup()
        return save(self.model, directory, tokenizer=tokenizer)

    def cleanup(self) -> None:
        """Let go of what was prepared, and of the process group on GPUs; the trainer is at its end."""
        if self._accelerator is None:
            return
        self._accelerator.wait_for_everyone()
        self._optimizer = self._scheduler = None
        self._loaders.clear()
        self._accelerator.free_memory()
        if self._accelerator.device.type == "cuda":
            self._accelerator.end_training()
        self._accelerator = None

    def _step(self, window: Sequence[Batch]) -> dict[str, float]:
        """Compute the micro-batches of one step on this rank, and step with the gradients of all."""
        accelerator = self.accelerator
        counts = [self._counts(batch) for batch in window]
        own, rows = sum(tokens for tokens, _ in counts), sum(rows for _, rows in counts)
        total, all_rows = self._gathered([float(own), float(rows)]).sum(dim=0).tolist()
        self._tokens.own, self._tokens.total = own, total
        losses = []
        for number, batch in enumerate(window, 1):
            with nullcontext() if number == len(window) else accelerator.no_sync(self.model):
                loss = self.model(**batch, num_items_in_batch=max(own, 1)).loss
                accelerator.backward(loss)
            losses.append(loss.detach().float())
        norm = self._clipped()
        rate = float(self._optimizer.param_groups[0]["lr"])
        self._optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        self._optimizer.zero_grad()
        self.steps += 1
        lost = self._gathered([float(sum(losses)) * max(own, 1)]).sum().item()
        return {
            "loss": lost / max(total, 1),
            "tokens": total,
            "rows": all_rows,
            "grad_norm": norm,
            "learning_rate": rate,
        }

    def _clipped(self) -> float:
        """Clip the gradients, and return the norm that they had."""
        limit = self.max_grad_norm or math.inf
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _own_batches(self, dataloader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield this rank's batches, on its device; rows that are there for the second time have no labels."""
        import torch

        if not isinstance(dataloader, torch.utils.data.DataLoader):
            for batch in dataloader:
                yield self._part_of(batch)
            return
        loader = self._prepared(dataloader)
        for batch in loader:
            _check_batch(batch)
            repeated = getattr(loader, "remainder", 0)
            if getattr(loader, "end_of_dataloader", False) and repeated > 0:
                own = max(
                    repeated - self.accelerator.process_index * (loader.total_batch_size // self.num_processes), 0
                )
                batch = {**batch, "labels": batch["labels"].clone()}
                batch["labels"][own:] = -100
            yield batch

    def _prepared(self, dataloader: Any) -> Any:
        """Return `dataloader`, shared out over the ranks; raises `ConfigError` for one that is so already."""
        import torch

        if isinstance(dataloader.sampler, torch.utils.data.distributed.DistributedSampler):
            consequence = "shares the rows out already: of N ranks each would train on one Nth of its own part."
            key, fix = "dataloader", "a DataLoader without a DistributedSampler"
            raise ConfigError(Problem(key=key, value="DistributedSampler", consequence=consequence, fix=fix))
        if getattr(dataloader, "_is_accelerate_prepared", False):
            return dataloader
        if dataloader not in self._loaders:
            self._loaders[dataloader] = prepare(self.accelerator, dataloader)
        return self._loaders[dataloader]

    def _part_of(self, batch: Batch) -> Batch:
        """Return this rank's rows of `batch`, on its device."""
        from accelerate.utils import send_to_device

        _check_batch(batch)
        part = _part(batch, self.num_processes, self.accelerator.process_index)
        moved: Batch = send_to_device(part, self.accelerator.device)
        return moved

    def _counts(self, batch: Batch) -> tuple[int, int]:
        """Return the learned tokens of `batch`, and its rows that have any."""
        learned = batch["labels"][:, 1:] != -100
        return int(learned.sum()), int(learned.any(dim=1).sum())

    def _gathered(self, numbers: Sequence[float]) -> Any:
        """Return `numbers` of every rank, (ranks, numbers) in float64."""
        import torch

        own = torch.tensor([list(numbers)], dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.gather(own)

    def _check_aggregation(self) -> None:
        if self.aggregation_method == AggregationMethod.MEAN or self.num_processes == 1:
            return
        if not rank_checks.distributed_type().startswith("MULTI_") or any(
            map(rank_checks.is_sharded, self.model.parameters())
        ):
            consequence = f"is a hook of DDP, and {rank_checks.running()} divides the weights: it sums them itself."
            fix = "AggregationMethod.MEAN, or a launch by DDP"
            key, value = "aggregation_method", self.aggregation_method.value
            raise ConfigError(Problem(key=key, value=value, consequence=consequence, fix=fix))


def _made(key: str, kind: Callable[..., Any], first: Any, named: Mapping[str, Any]) -> Any:
    """Return `kind(first, **named)`; raises `ConfigError` for keyword arguments that it doesn't take."""
    try:
        return kind(first, **named)
    except (TypeError, ValueError) as error:
        fix = f"the keyword arguments that {getattr(kind, '__name__', kind)} takes"
        problem = Problem(key=f"{key}.kwargs", value=str(dict(named)), consequence=f"{first_line(error)}.", fix=fix)
        raise ConfigError(problem) from None


def _part(batch: Batch, parts: int, number: int) -> Batch:
    """Return part `number` of `parts` of a batch; where it is without rows, one row that teaches nothing: a model takes
    no batch of none, and every rank must compute as many."""
    part = shard_batch(batch, parts).parts[number]
    if len(part["labels"]) == 0:
        part = dict(shard_batch(batch, len(batch["labels"])).parts[0])
        part["labels"] = part["labels"].clone().fill_(-100)
    return part


def _check_batch(batch: Batch) -> None:
    if not isinstance(batch, Mapping) or "labels" not in batch:
        found = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        consequence = "has no labels: there is no loss to learn from."
        fix = "a collate_fn that gives input_ids, attention_mask and labels (-100 where nothing is learned)"
        raise ConfigError(Problem(key="batch", value=found, consequence=consequence, fix=fix))


def _model_problems(model: Any) -> Iterator[Problem]:
    import torch

    if not isinstance(model, torch.nn.Module):
        consequence, fix = "is no model.", "model, tokenizer = FastLanguageModel.from_pretrained(…)"
        yield Problem(key="model", value=type(model).__name__, consequence=consequence, fix=fix)
    elif not any(parameter.requires_grad for parameter in model.parameters()):
        fix = "FastLanguageModel.get_peft_model(model, …) before"
        yield Problem(key="model", consequence="has no trainable parameter: nothing would be learned.", fix=fix)


def _class_problems(key: str, config: Mapping[str, Any] | None) -> Iterator[Problem]:
    if config is None:
        return
    if not isinstance(config, Mapping):
        fix = '{"class": torch.optim.AdamW, "kwargs": {"lr": 2e-5}}'
        yield Problem(key=key, value=str(config), consequence="needs a class and its keyword arguments.", fix=fix)
        return
    for name in set(config) - {"class", "kwargs"}:
        consequence = "would do nothing: the two keys are class and kwargs."
        yield Problem(
            key=f"{key}.{name}", value=config[name], consequence=consequence, fix=f'"kwargs": {{"{name}": …}}'
        )
    if not callable(config.get("class", list)) or not isinstance(config.get("kwargs", {}), Mapping):
        fix = '{"class": torch.optim.AdamW, "kwargs": {"lr": 2e-5}}'
        yield Problem(key=key, value=str(dict(config)), consequence="needs a class and its keyword arguments.", fix=fix)
    if key == "scheduler_config" and "class" not in config:
        fix = '"class": torch.optim.lr_scheduler.LinearLR'
        yield Problem(key="scheduler_config.class", consequence="is missing.", fix=fix)


def _number_problems(method: Any, accumulation: Any, norm: Any, precision: Any) -> Iterator[Problem]:
    methods = [one.value for one in AggregationMethod]
    if method not in methods:
        key, fix = "aggregation_method", f"one of: {', '.join(methods)}"
        yield Problem(key=key, value=str(method), consequence="is no way to aggregate gradients.", fix=fix)
    if not isinstance(accumulation, int) or accumulation < 1:
        key, consequence = "gradient_accumulation_steps", "is no whole number from 1."
        yield Problem(key=key, value=accumulation, consequence=consequence, fix="1")
    if not isinstance(norm, int | float) or not norm >= 0:
        yield Problem(key="max_grad_norm", value=norm, consequence="is no norm.", fix="1.0, or 0 for no clipping")
    if precision not in (None, "no", "fp16", "bf16"):
        key, fix = "mixed_precision", "no, fp16, bf16, or leave it out: the launch's"
        yield Problem(key=key, value=precision, consequence="is no precision.", fix=fix)
