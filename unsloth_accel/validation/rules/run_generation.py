"""Rules about the methods whose model writes the completions that it is trained on."""

from __future__ import annotations

from collections.abc import Iterator

from ...config.installed_source import popped
from ...config.run_config import DataConfig, RunConfig
from ...config.trainer_settings import depends_on_ranks
from ...errors import close_match
from ...strategies import STRATEGIES
from .document import Document, Finding
from .rule_registry import rule
from .run_settings import given, mapping, method_of, number, settings_of, values_of

_GENERATION_CONFIG = "transformers/generation/configuration_utils.py:GenerationConfig"
_LONGEST = "max_completion_length"


@rule("run-prompt-room", on=("run",))
def run_prompt_room(config: Document) -> Iterator[Finding]:
    """A longest completion that fills model.max_seq_length leaves no room for a prompt: no row is left to train on.

    Reference: unsloth_accel/data/tokenise.py: "the most tokens of a prompt".
    """
    if not method_of(config).generates:
        return
    longest, model = number(settings_of(config).get("max_completion_length")), values_of(config).get("model")
    limit = number((model if isinstance(model, dict) else {}).get("max_seq_length", 2048))
    if longest is not None and limit is not None and longest >= limit:
        consequence = f"leaves no token of model.max_seq_length={limit:g} for a prompt."
        fix = f"training.max_completion_length: {int(limit // 2)}, or a larger model.max_seq_length"
        yield config.problem("training.max_completion_length", consequence, fix)


@rule("run-loss-of-ranks", "warning", on=("run",))
def run_loss_of_ranks(config: Document) -> Iterator[Finding]:
    """A loss that divides by what one process has at once trains otherwise on another number of GPUs.

    Reference: trl/trainer/grpo_trainer.py: `_compute_loss`, "bnpo".
    """
    method, said = method_of(config), given(config)
    why = depends_on_ranks(RunConfig(method=method.name, data=DataConfig(path=""), training=said))
    name = next((key.partition("=")[0] for key in method.depends_with if key.partition("=")[0] in said), None)
    if why and name:
        yield config.problem(f"training.{name}", why, f"remove training.{name}, or keep to one number of GPUs")


@rule("run-scaled-rewards", "warning", on=("run",))
def run_scaled_rewards(config: Document) -> Iterator[Finding]:
    """`dr_grpo` leaves out two divisions of GRPO, by a completion's length and by the rewards' standard deviation; TRL
    divides by the second all the same, unless it is told not to. (Unsloth's config would turn that off on GPUs alone.)

    Reference: Liu et al., Understanding R1-Zero-Like Training (arXiv 2503.20783); unsloth/models/rl.py:
    `check_dr_grpo`.
    """
    values = settings_of(config)
    if not method_of(config).generates or values.get("loss_type") != "dr_grpo":
        return
    scale = values.get("scale_rewards")
    if scale in (None, False, "none"):
        return
    said = "training.scale_rewards" if "scale_rewards" in given(config) else "training.loss_type"
    consequence = (
        f"with scale_rewards={'group' if scale is True else scale} advantages are divided by a standard deviation, "
        "which dr_grpo is meant to leave out."
    )
    yield config.problem(said, consequence, "training.scale_rewards: none, or loss_type: dapo")


_RECKONED = {"temperature": "temperature", **dict.fromkeys(("max_new_tokens", "max_length", "max_tokens"), _LONGEST)}
"""Arguments of generating that the loss, and a plan of memory, know from fields of the trainer's own alone."""


@rule("run-generation-arguments", on=("run",))
def run_generation_arguments(config: Document) -> Iterator[Finding]:
    """generation_kwargs go into transformers' GenerationConfig, which keeps a name that it doesn't know and never looks
    at it. The temperature and the length of completions go past the trainer's fields: they are written at the
    temperature of generation_kwargs, and the loss is that of the field's. (top_p and its like may be given either way.)

    Reference: trl/trainer/grpo_trainer.py: `generation_kwargs.update(args.generation_kwargs)`, `disable_compile=True`;
    transformers/generation/configuration_utils.py: `self.temperature = kwargs.pop("temperature", None)`.
    """
    values, key = settings_of(config), "training.generation_kwargs"
    arguments, known = mapping(values.get("generation_kwargs")), popped(_GENERATION_CONFIG)
    if arguments is None:
        yield config.problem(key, "is no mapping of names to values; every process fails.", "remove it")
    for name, value in (arguments or {}).items() if method_of(config).generates else ():
        if field := _RECKONED.get(name):
            consequence = f"goes past training.{field}, which the trainer reckons with: it would train something else."
            yield config.problem(f"{key}.{name}", consequence, f"training.{field}: {value}")
        elif values.get("use_vllm"):  # whose SamplingParams aren't read here
            continue
        elif name == "disable_compile":
            yield config.problem(f"{key}.{name}", "TRL gives it itself; every process fails.", "remove it")
        elif known and name not in known:
            near = close_match(name, known)
            fix = f"did you mean {key}.{near}?" if near else "remove it, or a name of transformers' GenerationConfig"
            yield config.problem(f"{key}.{name}", "unknown name: nothing would look at it.", fix)


@rule("run-generation-server", on=("run",))
def run_generation_server(config: Document) -> Iterator[Finding]:
    """A server gets whole weights in 16 bit, into which TRL merges the adapter: a base in 4 bit or one that the
    strategy divides has none to send. Merging into 16 bit rounds: little of a small update arrives, and the base is a
    little another after each time (warned).

    Reference: trl/generation/vllm_generation.py: `sync_weights`, "merge_adapter"; of SmolLM2-135M in bfloat16, where
    each step moved B by 1e-5, 0.3 / 3 / 15 % of the update arrived after 1 / 10 / 50 steps, and 0.02 / 0.1 / 0.5 % of
    the base's weights had changed; in float16 2.6 / 24 / 79 % arrived (benchmarks/merged_base.py).
    """
    values = settings_of(config)
    if not method_of(config).generates or not values.get("use_vllm"):
        return
    model, spread = values_of(config).get("model"), values_of(config).get("distributed")
    key, own = "training.use_vllm", "remove it: the processes that train then write completions themselves"
    if values.get("vllm_mode") != "server":
        consequence = (
            "puts a vLLM engine beside the model on every GPU, which was not tried, and whose memory is not planned."
        )
        yield config.problem(key, consequence, f"training.vllm_mode: server, or {own}", mild=True)
        return
    asked = spread.get("strategy") if isinstance(spread, dict) else None
    strategy = STRATEGIES.get(asked) if isinstance(asked, str) else None
    if isinstance(model, dict) and model.get("load_in_4bit"):
        consequence = "sends 16-bit weights to the server, and a base in 4 bit has none: every process fails."
        yield config.problem(key, consequence, f"model.load_in_4bit: false, or {own}")
    elif strategy is not None and strategy.shards_weights:
        consequence = f"sends whole weights to the server, and {strategy.name} divides them: every process fails."
        yield config.problem(key, consequence, f"distributed.strategy: ddp, or {own}")
    elif not (isinstance(model, dict) and model.get("dtype") == "float32"):
        consequence = (
            "merges the adapter into the base before each sending and takes it out again, which rounds in 16 bit: of "
            "SmolLM2-135M's update at learning rate 1e-5 the server got 3 % after 10 steps in bfloat16 and 15 % after "
            "50, when 0.5 % of the base's weights had changed (in float16 24 and 79 %)."
        )
        fix = f"model.dtype: float32, and --dtype float32 of the server, or {own}"
        yield config.problem(key, consequence, fix, mild=True)
