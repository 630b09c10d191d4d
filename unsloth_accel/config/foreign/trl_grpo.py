"""Keys of TRL's and open-r1's GRPO scripts: rewards by name with their arguments, prompts, and what generates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import counted
from .keys import Becomes, Computed, Covered, Entry, Outcome, Theirs, Untranslated, alike

MARKS = ("reward_funcs", "num_generations", "max_completion_length", "reward_weights")
"""Keys that no other method's config has."""
_FIELDS = (
    *("num_generations", "num_generations_eval", "max_completion_length", "generation_batch_size"),
    *("steps_per_generation", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"),
    *("num_iterations", "epsilon", "epsilon_high", "delta", "importance_sampling_level"),
    *("scale_rewards", "mask_truncated_completions", "multi_objective_aggregation", "top_entropy_quantile"),
    *("entropy_coef", "log_completions", "num_completions_to_print", "log_unique_prompts", "cache_implementation"),
    *("vllm_mode", "vllm_server_host", "vllm_server_port", "vllm_server_base_url", "vllm_server_timeout"),
    *("vllm_group_port", "vllm_importance_sampling_correction", "shuffle_dataset"),
)
"""Fields of GRPOConfig that a run.yaml has below `training`."""
_ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "cosine": {
        **{
            f"cosine_{bound}_value_{of}": f"{bound}_value_{of}"
            for bound in ("min", "max")
            for of in ("wrong", "correct")
        },
        "cosine_max_len": "max_len",
    },
    "repetition_penalty": {"repetition_n_grams": "ngram_size", "repetition_max_penalty": "max_penalty"},
    "code_format": {"code_language": "language"},
    "soft_overlong_punishment": {"max_completion_len": "max_completion_len", "soft_punish_cache": "soft_punish_cache"},
}
"""open-r1's keys for arguments of its rewards (src/open_r1/configs.py: GRPOScriptArguments), by reward."""
_ARGUMENT = "an argument of its reward, in rewards.functions; nothing where that is not among them"
_GONE = "TRL has no such field any more"
USUAL_PROMPT, USUAL_COMPLETION = 512, 256
"""Tokens that TRL gave a prompt, before it left that out, and gives a completion."""


def _only_here(name: str) -> Entry:
    def read(value: Any, theirs: Theirs) -> Outcome:
        if name in theirs.fields:
            return Becomes(f"training.{name}").read(value, theirs)
        return Outcome(note="belongs to another training method")

    return Computed(read, f"`training.{name}`, of `method: grpo`")


def _rewards(value: Any, theirs: Theirs) -> Outcome:
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        return Outcome(note="name the rewards: rewards.functions=[accuracy, format].", translated=False)
    weights: Any = theirs.values.get("reward_weights")
    if not _are_weights(weights, len(names)):
        weights = [1.0] * len(names)  # told of its own key
    functions = [_function(name, weight, theirs) for name, weight in zip(names, weights, strict=True)]
    return Outcome({"rewards.functions": functions}, "by the same names; open-r1's are computed as open-r1 does")


def _function(name: str, weight: Any, theirs: Theirs) -> Any:
    # TRL's own script names functions by import path: trl.rewards.accuracy_reward.
    module, dot, own = name.rpartition(".")
    called = own if module == "trl.rewards" else f"{module}:{own}" if dot and ":" not in name else name
    known = _ARGUMENTS.get(called, {})
    arguments = {ours: theirs.values[key] for key, ours in known.items() if theirs.values.get(key) is not None}
    if weight == 1 and not arguments:
        return called
    return {"name": called, "weight": float(weight)} | ({"arguments": arguments} if arguments else {})


def _weights(value: Any, theirs: Theirs) -> Outcome:
    names = theirs.values.get("reward_funcs")
    count = len(names) if isinstance(names, list) else 1
    if _are_weights(value, count):
        return Outcome(note="the weights in rewards.functions")
    reason = (
        f"is no list of {counted(count, 'number')}, one for each reward: give each its weight in rewards.functions."
    )
    return Outcome(note=reason, translated=False)


def _are_weights(value: Any, count: int) -> bool:
    numbers = [one for one in value if isinstance(one, int | float)] if isinstance(value, list) else []
    return len(numbers) == count and numbers == value


def _prompt_column(value: Any, theirs: Theirs) -> Outcome:
    if theirs.method != "grpo":
        return Outcome(note="belongs to another training method")
    renamed = {"data.columns": {"prompt": value}} if value != "prompt" else {}
    return Outcome({"data.format": "question", **renamed}, "its text becomes a user's message, as in open-r1")


def _vllm(value: Any, theirs: Theirs) -> Outcome:
    if not value:
        return Outcome(note="the processes that train write completions")
    served = theirs.values.get("vllm_mode") == "server" or theirs.has("vllm_server_host", "vllm_server_base_url")
    if served:
        return Outcome({"training.use_vllm": True, "training.vllm_mode": "server"}, "a server that runs already")
    reason = (
        "the processes that train write completions here; for a server that runs: training.use_vllm=true, "
        "training.vllm_mode=server and training.vllm_server_host."
    )
    return Outcome(note=reason, translated=False)


def length(value: Any, theirs: Theirs) -> Outcome:
    """Return model.max_seq_length: for GRPO prompt and completion together, which its scripts give apart."""
    if theirs.method != "grpo":
        return Outcome({"model.max_seq_length": value})
    prompt = int(theirs.number("max_prompt_length", USUAL_PROMPT))
    completion = int(theirs.number("max_completion_length", USUAL_COMPLETION))
    said = f"{prompt} tokens of a prompt and {completion} of a completion; a longer prompt is left out"
    return Outcome({"model.max_seq_length": prompt + completion}, said)


KEYS: Mapping[str, Entry] = {
    **{name: _only_here(name) for name in _FIELDS},
    "reward_funcs": Computed(_rewards, "`rewards.functions`, with the weights and arguments of other keys"),
    "reward_weights": Computed(_weights, "weights in `rewards.functions`"),
    **{
        key: Covered(_ARGUMENT, f"an argument of `{name}` in `rewards.functions`")
        for name, keys in _ARGUMENTS.items()
        for key in keys
    },
    "dataset_prompt_column": Computed(_prompt_column, "`data.columns: {prompt: …}` and `data.format: question`"),
    "use_vllm": Computed(_vllm, "`training.use_vllm`, of a server"),
    **alike("vllm_device vllm_dtype vllm_max_model_len", Covered(_GONE)),
    "vllm_gpu_memory_utilization": Covered("only where vLLM runs inside of the processes"),
    "vllm_tensor_parallel_size": Covered("only where vLLM runs inside of the processes"),
    **alike(
        "code_eval_test_batch_size code_eval_scoring_mode parallel_code_exec_per_proc code_provider",
        Untranslated("rewards that run code are functions of your own: rewards.functions=[my_rewards:run_code]."),
    ),
}
