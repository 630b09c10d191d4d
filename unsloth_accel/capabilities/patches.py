"""The names of other packages that this one relies on: one record each, with what is lost without it.

Both kinds stand here: names that are only looked for, since they tell what a release can do, and names that `adapter`
replaces, or reads although they are private or written down nowhere. Where one is gone, `capabilities.probe` says so:
to a plan, to `doctor`, and to the adapter itself, which asks before it touches the name. What every version has that
setup.cfg admits isn't looked for: pip sees to those, and `doctor` where somebody went past it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NEWER = "pip install -U unsloth unsloth_zoo; the newest that was tried here is 2026.10.9"
TRIED = "the versions tried here: torch 2.13, accelerate 1.15, transformers 5.17, TRL 1.15, PEFT 0.21, datasets 4.8"


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Names of installed packages that stand and fall together."""

    what: str
    """Name in plain words, by which strategies need it and adapters ask for it."""
    place: str
    """`package/file: Class.name, name`, with `; ` between several; no names where the file itself is the sign. A name
    without a class belongs to that of the one before it, if that has one."""
    cost: str
    """Consequence of its absence."""
    adapter: str = ""
    """Our module, or folder of them, that replaces or reads it; empty where it is only looked for."""
    missing: Literal["do without", "mend", "refuse"] = "do without"
    """Reaction to its absence: the adapter leaves its work undone, and says so; or this package does the work itself,
    and nothing is lost; or what needs it is refused, since it would train wrongly or fail midway."""
    only: Literal["", "cpu", "4bit"] = ""
    """Restriction of the need to a CPU, or to a 4-bit model."""
    install: str = ""
    """Command that helps, where it isn't to install a version that was tried here."""
    instead: tuple[str, ...] = ()
    """Packages with which it isn't needed."""

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(self.place.split("; "))

    @property
    def package(self) -> str:
        """Package of the first place, the only one where something was found to be gone."""
        return self.place.partition("/")[0]

    @property
    def fix(self) -> str:
        return self.install or (NEWER if self.package.startswith("unsloth") else TRIED)


# fmt: off
PATCHES = (
    Patch(what="native FSDP2", place="unsloth/models/fsdp2_native.py",
          cost="the GPUs can't divide the weights, so a model that doesn't fit one GPU can't be trained"),
    Patch(what="sharded loading", place="unsloth/models/fsdp2_load.py",
          cost="every GPU loads the whole model before it is sharded, so it must fit one GPU after all"),
    Patch(what="kernels that know FSDP2", place="unsloth/models/fsdp2.py",
          cost="Unsloth's kernels read weights beside FSDP2's hooks and meet shards instead of weights"),
    Patch(what="fused loss under FSDP2", place="unsloth_zoo/fused_losses/cross_entropy_loss.py: unsloth_fsdp_unshard",
          cost="the fused loss reads lm_head's shard instead of the gathered weight"),
    Patch(what="4-bit weights under FSDP2", place="unsloth/models/fsdp2_qlora.py",
          cost="4-bit weights lose their quantization state when they are gathered", only="4bit"),
    Patch(what="LoRA kernels declined under FSDP1", place="unsloth/models/llama.py: _decline_fused_lora_for_fsdp",
          cost="the fused LoRA kernels read FSDP1's flat shards and stop (unsloth#409)"),
    Patch(what="CPU backend", place="unsloth/_cpu_init.py", cost="Unsloth stops at import on a machine without a GPU",
          only="cpu"),
    Patch(what="triton", place="triton/__init__.py", cost="Unsloth's sharding imports triton, also on a CPU",
          only="cpu", install="pip install triton"),
    Patch(what="placement by LOCAL_RANK", place="unsloth/models/loader_utils.py: _infer_local_rank",
          cost="4-bit models load onto GPU 0 on every rank, or on a second machine onto a GPU that isn't there; "
               "`launch RUN.yaml` places them, your own script must pass device_map={'': LOCAL_RANK}", missing="mend"),
    Patch(what="DDP's unused parameters",
          place="unsloth/models/_ddp_defaults.py: unsloth_default_ddp_find_unused_parameters",
          cost="DDP marks LoRA weights ready twice under Unsloth's checkpointing and stops; `adapt` decides instead",
          missing="mend"),
    Patch(what="copies of models",
          place="unsloth/models/mapper.py: FLOAT_TO_INT_MAPPER, INT_TO_FLOAT_MAPPER, MAP_TO_UNSLOTH_16bit",
          cost="a model that is gated or gone is refused, although Unsloth may load a copy of its own",
          adapter="models.known_names"),
    Patch(what="the configs of an auto class",
          place="transformers/models/auto/auto_factory.py: _BaseAutoModelClass._model_mapping",
          adapter="models.build_without_weights",
          cost="a model of an unknown family can't be counted, so it is planned without an estimate"),
    Patch(what="the processor that Unsloth loads",
          place="unsloth/models/vision.py: _construct_vlm_processor_fallback, _missing_torchvision_error",
          adapter="adapters.towers",
          cost="a model with a tower is loaded with its processor of images, which needs torchvision, also for text"),
    Patch(what="rotary buffers kept out of DDP",
          place="unsloth/models/loader_utils.py: _exclude_rope_inv_freq_from_ddp",
          cost="DDP sends constant buffers in every forward, and NCCL stops at one on the CPU; `adapt` sends none",
          missing="mend"),
    Patch(what="GRPO under DDP", place="unsloth/models/rl.py: _wrap_grpo_ddp_gradient_sync",
          cost="GRPO's gradients are never averaged: every rank trains alone, and the guard stops it in its first "
               "step"),
    # Measured on two H100 with 2025.12.10: benchmarks/results/gpu-checks.json, older-2025.12.10.
    Patch(what="loss that DDP may scale", place="unsloth_zoo/fused_losses/cross_entropy_loss.py: grad_scale_val",
          cost="under DDP every gradient comes out divided by the number of GPUs: AdamW makes nearly the same steps, "
               "but clipping acts that many times later, the gradient norm is shown too small, and SGD would be that "
               "much slower"),
    Patch(what="tiled MLP under DDP", place="unsloth/models/_tiled_mlp_ddp.py",
          cost="DDP fails with unsloth_tiled_mlp=True; leave it off"),
    Patch(what="fully_shard", place="torch/distributed/fsdp/__init__.py: fully_shard", cost="there is no FSDP2",
          install='pip install "torch>=2.8"'),
    # unsloth/utils/attention_dispatch.py: _load_torch_varlen_attn, _sdpa_packed_segments.
    Patch(what="attention of many rows in one call", place="torch/nn/attention/varlen.py: enable_gqa",
          instead=("flash_attn", "xformers"),
          cost="on GPUs, where rows are laid end to end (packed or without padding), Unsloth starts every layer's "
               "attention once for each row, so that a step's time goes by its rows more than by its tokens; `adapt` "
               "has it done in one call where torch's kernel passes a trial on the GPU",
          install='pip install -U "torch>=2.12", or flash-attn, or xformers'),
    Patch(what="FSDP2's plugin", place="accelerate/utils/fsdp_utils.py: fsdp2_prepare_model",
          cost="accelerate wraps with FSDP1 only", install='pip install "accelerate>=1.15"'),
    Patch(what="4-bit weights", place="bitsandbytes/nn/modules.py: Linear4bit",
          cost="model.load_in_4bit and 8-bit optimizers can't run", install="pip install bitsandbytes"),
    # From here on those that adapters replace, or read privately.
    Patch(what="methods that take a step of ours",
          place="transformers/trainer.py: Trainer.train, training_step, save_model, get_train_dataloader; "
                "accelerate/accelerator.py: Accelerator.prepare, prepare_model, ddp_handler, gather_for_metrics; "
                "transformers/generation/utils.py: GenerationMixin.generate", adapter="training.adapt",
          cost="the model is neither wrapped nor saved as it must be", missing="refuse"),
    Patch(what="the adapter in a sharded run's checkpoints", place="transformers/trainer.py: Trainer._save",
          adapter="adapters.checkpointing",
          cost="a Trainer's checkpoints hold no adapter where the GPUs divide the weights", missing="refuse"),
    Patch(what="checkpoints that can't be written",
          place="transformers/trainer.py: Trainer._save_checkpoint, _get_output_dir, _load_best_model, "
                "_determine_best_metric, _push_from_checkpoint; torch/serialization.py: save",
          adapter="adapters.checkpointing",
          cost="a checkpoint that can't be written ends the run, none tells what it was made with, and where the best "
               "one is lost the last weights pass for it"),
    Patch(what="checkpoints deleted once all is written",
          place="transformers/trainer.py: rotate_checkpoints, sort_checkpoints, Trainer._finalize_training",
          adapter="adapters.checkpointing",
          cost="save_total_limit deletes directories of your own whose names begin with checkpoint-, and the older "
               "checkpoint before every process has written the newer one"),
    Patch(what="the time-out of a CPU's collectives", place="torch/distributed/distributed_c10d.py: _set_pg_timeout",
          adapter="adapters.gloo_timeout",
          cost="on a CPU a rank waits half an hour for another, whatever training.ddp_timeout says"),
    Patch(what="a README of the user's own", place="trl/trainer/base_trainer.py: _BaseTrainer.create_model_card",
          adapter="adapters.model_card",
          cost="with each checkpoint TRL writes its draft of a model card over the README.md in output_dir, and names "
               "no base where that is a directory"),
    Patch(what="an adapter's card", place="peft/peft_model.py: PeftModel.create_or_update_model_card",
          adapter="adapters.model_card",
          cost="the adapter's card is PEFT's form to fill in, which the Hub refuses where the base is a directory"),
    Patch(what="rows in an order that is known",
          place="transformers/trainer.py: Trainer._get_train_sampler; transformers/trainer_pt_utils.py: "
                "LengthGroupedSampler.generator", adapter="adapters.epoch_order",
          cost="rows that are grouped by length come in an order of chance: ranks may draw different ones, and a run "
               "that goes on in mid-epoch trains other rows"),
    Patch(what="no step past the end",
          place="transformers/trainer.py: Trainer._run_epoch, _finalize_training, _evaluate, _determine_best_metric",
          adapter="adapters.resuming",
          cost="going on from a checkpoint with max_steps behind it makes one step more, and an evaluation that a stop "
               "left out is not made"),
    Patch(what="the learning rate of a resumed run's first log",
          place="torch/optim/lr_scheduler.py: LRScheduler._last_lr", adapter="adapters.resuming",
          cost="it may be another than the one that the step is made with"),
    Patch(what="a learning rate for embeddings",
          place="unsloth/trainer.py: UnslothTrainer, create_optimizer, embedding_learning_rate",
          adapter="adapters.embedding_rate", missing="refuse",
          cost="training.embedding_learning_rate would have no effect"),
    Patch(what="tokens counted late",
          place="transformers/trainer.py: Trainer._track_num_input_tokens, _maybe_log_save_evaluate",
          adapter="adapters.token_count",
          cost="where tokens are counted the GPU waits for the processor in every micro-batch"),
    Patch(what="rows shared out by tokens",
          place="accelerate/data_loader.py: DataLoaderShard._non_blocking", adapter="adapters.token_balance",
          cost="rows are shared out by number, and ranks wait for the one with the longest"),
    Patch(what="a batch that is set anew", place="transformers/trainer.py: Trainer._train_batch_size",
          adapter="adapters.real_batch", cost="a Trainer keeps the batch that it was made with"),
    Patch(what="a reference that isn't saved",
          place="transformers/trainer.py: adapter_subdirs; peft/peft_model.py: PeftModel.save_pretrained, "
                "selected_adapters",
          adapter="adapters.reference", missing="refuse",
          cost="DPO or KTO that begins with an adapter, resumed from a checkpoint, would load the reference and leave "
               "the trained adapter behind"),
    Patch(what="trainers that write completions",
          place="trl/trainer/grpo_trainer.py: GRPOTrainer._generate_and_score_completions",
          adapter="adapters.generating", cost="GRPO's trainer is not known as one that writes what it trains on"),
    Patch(what="completions of one run in another",
          place="trl/trainer/grpo_trainer.py: GRPOTrainer._generate_single_turn",
          adapter="adapters.recorded_completions", missing="refuse",
          cost="`verify` would compare GRPO's runs on different completions"),
    Patch(what="completions of a step in parts",
          place="trl/trainer/grpo_trainer.py: GRPOTrainer._prepare_inputs, _generate_single_turn, _step, _metrics, "
                "_entropy_bonus_enabled, aux_loss_enabled",
          adapter="adapters.written_steps", cost="a step of GRPO that runs out of memory ends the run"),
    Patch(what="scaled rewards as asked", place="trl/trainer/grpo_config.py: GRPOConfig.scale_rewards",
          adapter="training.grpo", cost="Unsloth's config leaves rewards unscaled for dr_grpo, on GPUs alone"),
    Patch(what="completions that are kept", place="trl/trainer/grpo_trainer.py: GRPOTrainer._logs",
          adapter="callbacks.completions", cost="no completions of GRPO are kept for the report"),
    Patch(what="precision that a model asks of Unsloth's trainers",
          place="unsloth/models/_utils.py: _unsloth_forced_float32", adapter="training.trls_trainer",
          cost="on a CPU without bfloat16 methods that shard or keep activations compute in float16"),
    Patch(what="held-out figures over all rows", place="trl/trainer/dpo_trainer.py: DPOTrainer._metrics",
          adapter="adapters.held_out_loss",
          cost="what TRL notes beside a held-out loss is the mean of batches, of which the last is smaller"),
    Patch(what="held-out loss over all rows",
          place="transformers/trainer.py: Trainer.evaluation_loop, prediction_step, _loss_shifts_labels, "
                "gather_function",
          adapter="adapters.held_out_loss",
          cost="a held-out loss depends on the number of processes and on per_device_eval_batch_size, and that of a "
               "classification head is as many times itself as there are processes"),
    Patch(what="the order that ranks draw",
          place="accelerate/data_loader.py: BatchSamplerShard.batch_sampler, num_processes",
          adapter="adapters.rank_loaders",
          cost="ranks that draw their rows in other orders, or label them otherwise, are not stopped"),
    Patch(what="schedulers that step once per optimizer step",
          place="accelerate/scheduler.py: AcceleratedScheduler.split_batches, step_with_optimizer",
          adapter="training.accelerator_loop",
          cost="a scheduler makes a step for each process, so that its rates are those of one process no more",
          missing="refuse"),
    Patch(what="blocks that keep their activations",
          place="unsloth/models/_utils.py: skip_checkpointing, _unsloth_skip_checkpoint, _unsloth_auto_skip, "
                "_unsloth_gradient_checkpointing; "
                "unsloth_zoo/block_swap.py: find_decoder_layers; unsloth_zoo/gradient_checkpointing.py: FIRST_PASS, "
                "LAST_GC_INDEX, CURRENT_GC_INDEX", adapter="adapters.kept_activations",
          cost="every decoder block computes its activations again in the backward pass, however much memory is left"),
    Patch(what="a rehearsed step",
          place="transformers/trainer.py: Trainer._eval_dataloaders, current_gradient_accumulation_steps; "
                "accelerate/accelerator.py: Accelerator._dataloaders; "
                "accelerate/state.py: GradientState._set_sync_gradients", adapter="training.rehearsal",
          cost="the longest step isn't computed before the first one, and a lack of memory may show late"),
    Patch(what="an optimizer's twin",
          place="torch/optim/optimizer.py: Optimizer._optimizer_step_pre_hooks, _optimizer_step_post_hooks, "
                "param_groups", adapter="adapters.optimizer_state",
          cost="the longest step is rehearsed without memory reserved for the optimizer's state"),
    Patch(what="checkpointing before its first pass",
          place="unsloth_zoo/gradient_checkpointing.py: reset_unsloth_gradient_checkpointing_buffers",
          adapter="training.rehearsal",
          cost="once the longest step was rehearsed, the first step of a float32 model differs in its last bits"),
    Patch(what="a step done again",
          place="torch/nn/parallel/distributed.py: DistributedDataParallel.require_forward_param_sync; "
                "torch/_C/_VariableFunctions.pyi: _foreach_copy_; unsloth_zoo/gradient_checkpointing.py: GPU_BUFFERS; "
                "unsloth/kernels/utils.py: WEIGHT_BUFFERS, ABSMAX_BUFFERS", adapter="adapters.out_of_memory",
          cost="a step that runs out of memory ends the run"),
    Patch(what="TRL's count of tokens", place="trl/trainer/sft_trainer.py: SFTTrainer._total_train_tokens, _metrics",
          adapter="adapters.out_of_memory",
          cost="where steps are done again, the log counts one rank's tokens, and some of them twice"),
    Patch(what="the wait for the loader", place="torch/utils/data/dataloader.py: _BaseDataLoaderIter.__next__",
          adapter="callbacks.loader_clock",
          cost="the time in which training waits for its rows isn't told from computing"),
    Patch(what="the time in callbacks", place="transformers/trainer_callback.py: CallbackHandler.call_event",
          adapter="callbacks.callback_clock",
          cost="a rank that is slow in its callbacks isn't named"),
    Patch(what="training after an evaluation",
          place="accelerate/accelerator.py: Accelerator._models, _is_accelerate_prepared, _original_forward",
          adapter="adapters.ddp",
          cost="after an evaluation DDP no longer wraps the model, and the guard stops the run"),
    Patch(what="buffers that DDP leaves alone",
          place="torch/nn/parallel/distributed.py: "
                "DistributedDataParallel._set_params_and_buffers_to_ignore_for_model, "
                "_ddp_params_and_buffers_to_ignore", adapter="adapters.ddp_settings",
          cost="rank 0 sends constant buffers in every forward pass, and NCCL stops at one on the CPU"),
    Patch(what="the kind of checkpointing", place="transformers/modeling_utils.py: _gradient_checkpointing_func",
          adapter="adapters.ddp_settings",
          cost="it is taken for reentrant, so DDP never looks for parameters without a gradient"),
    Patch(what="the kind of a vision model's checkpointing", place="unsloth/models/vision.py: _unsloth_original",
          adapter="adapters.ddp_settings",
          cost="it may be taken for reentrant, so DDP doesn't look for parameters without a gradient"),
    Patch(what="the adapter under FSDP1",
          place="peft/tuners/tuners_utils.py: _get_tuner_state_dict_key_prefixes; accelerate/utils/fsdp_utils.py: "
                "_set_model_state_dict; torch/distributed/fsdp/fully_sharded_data_parallel.py: "
                "FullyShardedDataParallel._handle, _is_root", adapter="adapters.fsdp1",
          cost="an empty adapter is saved, and none restored from a checkpoint", missing="refuse"),
    Patch(what="FSDP2's units",
          place="torch/distributed/fsdp/_fully_shard/_fully_shard.py: FSDPModule._get_fsdp_state; "
                "torch/distributed/fsdp/_fully_shard/_fsdp_state.py: FSDPState._fsdp_param_group, _lazy_init; "
                "torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py: FSDPParamGroup.post_forward_mesh_info",
          adapter="adapters.fsdp2", cost="a model that FSDP2 divides is neither set up well nor can it generate",
          missing="refuse"),
    Patch(what="a tower that is a unit of its own",
          place="accelerate/utils/dataclasses.py: FullyShardedDataParallelPlugin.transformer_cls_names_to_wrap",
          adapter="adapters.fsdp2.shard",
          cost="a model's tower for images or sound is gathered in every step, though rows of text don't pass it"),
    Patch(what="gradients of weights that were gathered",
          place="torch/distributed/fsdp/_fully_shard/_fsdp_param.py: FSDPParam.to_accumulated_grad_if_needed, "
                "_unsharded_param", adapter="adapters.fsdp2.shard",
          cost="a model whose tower no row passes fails in the first step that accumulates gradients in 16 bits"),
    Patch(what="weights fetched from peers",
          place="torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py: FSDPParamGroup._to_sharded, _to_unsharded, "
                "_all_gather_result, _training_state, _reshard_after_forward, _post_forward_indices, unshard, "
                "wait_for_unshard; torch/distributed/fsdp/_fully_shard/_fsdp_param.py: FSDPParam._orig_size, "
                "_sharded_param_data, _module_info, _unsharded_param, init_unsharded_param, all_gather_outputs; "
                "torch/distributed/fsdp/_fully_shard/_fsdp_state.py: "
                "FSDPState._is_root, _training_state, _state_ctx, _comm_ctx, _modules_to_run_forward, "
                "FSDPStateContext.iter_forward_root, post_backward_final_callback_queued; "
                "torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py: AllGatherResult; "
                "torch/distributed/fsdp/_fully_shard/_fsdp_common.py: TrainingState; torch/distributed/tensor/_api.py: "
                "DTensor._local_tensor; torch/distributed/_symmetric_memory/__init__.py: empty, rendezvous; "
                "torch/autograd/grad_mode.py: _unsafe_preserve_version_counter; torch/_C/_VariableFunctions.pyi: "
                "_assert_async; torch/_C/__init__.pyi: _construct_storage_from_data_pointer",
          adapter="adapters.fsdp2.peer_fetch",
          cost="weights travel between the GPUs by NCCL's kernels, which slow the matrix products down"),
    Patch(what="the output head gathered for the loss only",
          place="torch/nn/modules/module.py: Module._forward_pre_hooks; unsloth/models/fsdp2.py: "
                "_unsloth_gather_direct_reads", adapter="adapters.fsdp2.shard",
          cost="it is gathered before the first block and stays through the backward pass"),
    Patch(what="rows that Unsloth loads",
          place="unsloth/models/fsdp2_load.py: fsdp2_sharded_loading, has_preloaded_shards, begin_shard, finish_shard, "
                "_preload, _PRELOAD, _chunk_rows", adapter="adapters.fsdp2.loading",
          cost="every GPU loads the whole model before it is sharded, so it must fit one GPU after all"),
    Patch(what="4-bit weights cut as they are made",
          place="transformers/integrations/bitsandbytes.py: Bnb4bitQuantize.convert, Bnb4bitDeserialize.convert; "
                "transformers/modeling_utils.py: caching_allocator_warmup", adapter="adapters.fsdp2.loading",
          cost="every GPU holds the whole 4-bit model while it loads"),
    Patch(what="gradients of whole weights", place="unsloth/models/fsdp2_save.py: reduce_unsharded_trainable_grads",
          adapter="adapters.fsdp2.shard", cost="LoRA weights that stay whole on every rank are never averaged",
          missing="refuse"),
    Patch(what="gradients copied together",
          place="unsloth/models/fsdp2_save.py: _sync_replicated_grads, mesh_all_reduce; "
                "torch/_C/_VariableFunctions.pyi: _foreach_copy_", adapter="adapters.fsdp2.whole_gradients",
          cost="gradients of weights that FSDP2 leaves whole are copied one by one"),
    Patch(what="Unsloth's sharding in a loop",
          place="unsloth/models/fsdp2_native.py: FSDP2Config, shard_model, split_param_groups, is_native_fsdp2, "
                "native_fsdp2_unsharded, _TRAINER_ACCELERATOR; unsloth/fsdp2_launch.py: unsloth_fsdp2_native_requested",
          adapter="adapters.fsdp2", cost="the model isn't divided", missing="refuse"),
    Patch(what="Unsloth's policy, seen", place="unsloth/models/fsdp2.py: _POLICY_SEEN", adapter="adapters.import_order",
          cost="an Accelerator built before unsloth is imported isn't noticed, and FSDP2 sums gradients in 16 bits"),
    Patch(what="an Accelerator without a group", place="accelerate/state.py: PartialState._shared_state",
          adapter="adapters.import_order",
          cost="one that is built before unsloth_accel is imported is noticed in the first step only"),
    Patch(what="attention that Unsloth dispatches",
          place="unsloth/utils/attention_dispatch.py: _TORCH_VARLEN_ATTN, _LEAN_VARLEN, _LeanFlashVarlen",
          adapter="adapters.varlen_attention",
          cost="each layer's attention starts once for every row of a packed batch, with a torch before 2.12",
          instead=("flash_attn", "xformers")),
    Patch(what="a trial while a block is compiled",
          place="unsloth/models/_block_compile.py: _MARK; unsloth/utils/hf_packed_attention.py: _varlen_in_graph_probe",
          adapter="adapters.block_trials",
          cost="a model whose blocks Unsloth compiles whole may hang in its first step under DDP", missing="mend"),
    Patch(what="outputs recorded beside a block's own",
          place="transformers/utils/output_capturing.py: _active_collector", adapter="adapters.block_trials",
          cost="a sharded mixture of experts whose blocks Unsloth compiles whole may read weights that were freed"),
    Patch(what="rows that Unsloth need not cut", place="unsloth/models/rl.py: _unsloth_truncated_to", adapter="data",
          cost="Unsloth turns batches without padding off"),
    Patch(what="what the Hub's rows are known by", place="datasets/arrow_dataset.py: Dataset._fingerprint",
          adapter="data.prepare",
          cost="rows that were tokenised before their files on the Hub changed would be trained", missing="refuse"),
    Patch(what="what a model tells beside its output",
          place="transformers/modeling_utils.py: PreTrainedModel._can_record_outputs", adapter="training.model_kind",
          cost="models without an auxiliary loss whose config has a rate of one, Granite's, end in TRL's loss"),
    Patch(what="LoRA of mixtures before transformers 5",
          place="peft/utils/transformers_weight_conversion.py: convert_peft_config_for_transformers",
          adapter="artifacts.fused_experts",
          cost="an adapter of a mixture of experts that was trained on a GPU can't be merged, nor loaded on a CPU"),
    Patch(what="embeddings saved once", place="peft/peft_model.py: PeftModel.save_pretrained",
          adapter="training.load_model", cost="embeddings that are trained whole and resized are saved three times"),
    Patch(what="processes to tokenise with", place="unsloth_zoo/dataset_num_proc.py: get_dataset_num_proc",
          adapter="data.prepare", cost="rows are tokenised by one process"),
    Patch(what="failures that accelerate tells", place="accelerate/commands/launch.py: is_rich_available",
          adapter="launch.run_accelerate",
          cost="with rich installed and debug on, accelerate prints a failure and returns as if all had gone well"),
    Patch(what="signals that torchrun leaves alone",
          place="torch/distributed/launcher/api.py: LaunchConfig.signals_to_handle",
          adapter="launch.run_accelerate", cost="a SIGHUP that nohup has ignored stops the run"),
)
# fmt: on
