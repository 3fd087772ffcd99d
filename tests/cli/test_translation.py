"""Whole command lines of other tools become command lines of gpt."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from gptcli.cli.aliases import OF_COMMAND, options_of, table_of
from gptcli.cli.translation import corrected


@pytest.mark.parametrize("command", OF_COMMAND)
def test_corrected_lines_have_only_our_options(command: str) -> None:
    takes = options_of(command)
    for word, alias in table_of(command, takes).items():
        line = shlex.split(corrected(command, [f"--{word}", "8"], takes).partition("\n")[0])
        if line:
            assert " ".join(line).startswith(command)
            assert not [part for part in line if part.startswith("--") and part not in takes], line
        else:
            assert not alias.target or alias.convert is not None


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("--size 350M --learning-rate 3e-4", "gpt train --size 350M --lr 3e-4"),
        ("--size=350M --learning_rate=3e-4", "gpt train --size 350M --lr 3e-4"),
        ("--batch-size 16 --n-ctx 256", "gpt train --batch-tokens 4096 --n-ctx 256"),
        ("--block_size=256 --batch_size=16", "gpt train --n-ctx 256 --batch-tokens 4096"),
        ("--size gpt2 --batch-size 16", "gpt train --size gpt2 --batch-tokens 16384"),
        ("--batch-size 16", ""),  # of how many tokens each?
        ("--max-steps 100 --batch-tokens 8k", "gpt train --tokens 800000 --batch-tokens 8k"),
        (
            "--max-steps 1000 --size gpt2",
            "gpt train --tokens 524288000 --size gpt2 --batch-tokens 524288",
        ),
        (
            "--depth=12 --batch-tokens 8k",
            "gpt train --n-layer 12 --batch-tokens 8k --d-model 768 --n-head 6",
        ),
        ("--depth=12 --size gpt2", "gpt train --n-layer 12 --size gpt2"),
        ("--warmup-steps 100 --size 125M", "gpt train --warmup-tokens 52428800 --size 125M"),
        ("--warmup-ratio 0.01 --tokens 1M", "gpt train --warmup-tokens 10000 --tokens 1M"),
        ("--min-lr 6e-5 --lr 6e-4", "gpt train --min-lr-ratio 0.1 --lr 6e-4"),
        ("--dtype bfloat16 --lr 1", "gpt train --precision bf16 --lr 1"),
        ("--eval-iters 100", ""),  # batches are not tokens
        ("--bf16 True --lr 1", "gpt train --precision bf16 --lr 1"),
        ("--resume-from-checkpoint --out a", "gpt train --resume --out a"),
        ("--tp 2 --pp 4", "gpt train --layout tp=2,pp=4"),
        ("--num-gpus 8", "gpt train --layout dp=8"),
        ("--training.lr 1", "gpt train --lr 1"),
        ("-lr 3e-4", "gpt train --lr 3e-4"),
        ("lr=3e-4 n_layer=2", "gpt train --lr 3e-4 --n-layer 2"),
        ("--wandb", "gpt train --track wandb"),
        ("--max-grad-norm 1", ""),
        ("--batch-tokens 1k --batch-size 4 --n-ctx 64", "gpt train --batch-tokens 256 --n-ctx 64"),
        ("--resume-from-checkpoint runs/a --lr 1", "gpt train --resume --out runs/a --lr 1"),
        ("--resume-from-checkpoint True", "gpt train --resume"),
        (
            "--optim adamw_torch --lr-scheduler-type COSINE",
            "gpt train --optimizer adamw --lr-schedule cosine",
        ),
        ("--lr 1 --xyzzy 2", ""),
    ],
)
def test_values_are_converted_in_corrected_lines(
    args: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert corrected("gpt train", shlex.split(args), options_of("gpt train")) == line


def test_arguments_and_days_are_converted_in_corrected_lines() -> None:
    assert corrected(
        "gpt sample",
        ["--prompt", "a b", "--model", "run", "--max-new-tokens", "5"],
        options_of("gpt sample"),
    ) == ("gpt sample run 'a b' --max-tokens 5")
    assert corrected("gpt cost", ["--days", "3"], options_of("gpt cost")) == "gpt cost --hours 72"


def test_epochs_are_converted_by_the_tokens_of_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.shards import manifest

    class Shards:
        def tokens(self, split: str) -> int:
            return {"train": 1000}[split]

    monkeypatch.setattr(
        manifest, "read_manifest", lambda folder: {Path("shards"): Shards()}[folder]
    )
    assert (
        corrected("gpt train", ["--epochs", "3"], options_of("gpt train"))
        == "gpt train --tokens 3000"
    )


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("--model hf --model_args pretrained=gpt2 --tasks lambada", "gpt2 --task lambada"),
        ("--model vllm --model_args=pretrained=a/b,dtype=float16", "a/b"),
        ("--model runs/a --num_fewshot 5", "runs/a --shots 5"),
    ],
)
def test_a_command_line_of_lm_evaluation_harness(typed: str, line: str) -> None:
    takes = options_of("gpt eval")
    assert corrected("gpt eval", typed.split(), takes) == f"gpt eval {line}"


LINES_OF_TOOLS = {
    "nanoGPT": (
        "gpt train",
        """train.py config/train_gpt2.py --out_dir=out --eval_interval=1000 --log_interval=1
        --eval_iters=200 --eval_only=False --always_save_checkpoint=True --init_from=scratch
        --wandb_log=False --wandb_project=owt --wandb_run_name=gpt2 --dataset=openwebtext
        --gradient_accumulation_steps=40 --batch_size=12 --block_size=1024 --n_layer=12 --n_head=12
        --n_embd=768 --dropout=0.0 --bias=False --learning_rate=6e-4 --max_iters=600000
        --weight_decay=1e-1 --beta1=0.9 --beta2=0.95 --grad_clip=1.0 --decay_lr=True
        --warmup_iters=2000 --lr_decay_iters=600000 --min_lr=6e-5 --backend=nccl --device=cuda
        --dtype=bfloat16 --compile=True""",
        "gpt train --out out --eval-every 1000 --eval-tokens 2457600 --data openwebtext "
        "--batch-tokens 491520 --n-ctx 1024 --n-layer 12 --n-head 12 --d-model 768 --dropout 0.0 "
        "--lr 6e-4 --tokens 294912000000 --weight-decay 1e-1 --warmup-tokens 983040000 "
        "--decay-tokens 294912000000 --min-lr-ratio 0.1 --precision bf16 --compile on",
    ),
    "run_clm.py of transformers": (
        "gpt train",
        """run_clm.py --model_name_or_path gpt2 --dataset_name wikitext --dataset_config_name
        wikitext-2-raw-v1 --train_file a.txt --validation_file b.txt --do_train --do_eval
        --output_dir out --overwrite_output_dir --per_device_train_batch_size 8
        --per_device_eval_batch_size 8 --gradient_accumulation_steps 4 --learning_rate 5e-5
        --weight_decay 0.01 --adam_beta1 0.9 --adam_beta2 0.999 --adam_epsilon 1e-8
        --max_grad_norm 1.0 --max_steps 100 --lr_scheduler_type cosine --warmup_ratio 0.1
        --logging_dir logs --logging_steps 10 --save_strategy steps --save_steps 500
        --save_total_limit 2 --eval_strategy steps --eval_steps 500 --seed 42 --bf16 True
        --fp16 False --tf32 True --dataloader_num_workers 4 --load_best_model_at_end True
        --metric_for_best_model loss --report_to none --push_to_hub False --optim adamw_torch
        --gradient_checkpointing True --torch_compile False --deepspeed ds.json --block_size 1024
        --trust_remote_code True --cache_dir c --preprocessing_num_workers 4 --max_train_samples
        1000 --low_cpu_mem_usage --streaming --ddp_timeout 1800 --full_determinism True""",
        "gpt train --init-from gpt2 --out out --force --micro-batch 8 --batch-tokens 32768 --lr 5e-5 "
        "--weight-decay 0.01 --tokens 1024000 --lr-schedule cosine --warmup-tokens 102400 "
        "--track tensorboard --checkpoint-every 500 --keep 2 --eval-every 500 --seed 42 "
        "--precision bf16 --optimizer adamw --recompute full --n-ctx 1024 --deterministic",
    ),
    "litgpt": (
        "gpt train",
        """350M --model_config c.yaml --out_dir out --precision bf16-true
        --initial_checkpoint_dir null --resume auto --data TextFiles
        --data.train_data_path shards --data.val_data_path val --data.num_workers 4
        --train.save_interval 1000 --train.log_interval 1 --train.global_batch_size 512
        --train.micro_batch_size 4 --train.lr_warmup_steps 2000 --train.max_tokens 3000000000000
        --train.max_seq_length 2048 --train.tie_embeddings False --train.max_norm 1.0
        --train.min_lr 4e-5 --eval.interval 1000 --eval.max_new_tokens 10 --eval.max_iters 100
        --eval.initial_validation False --eval.final_validation True --optimizer AdamW
        --optimizer.lr 4e-4 --optimizer.weight_decay 0.1 --devices auto --num_nodes 1
        --tokenizer_dir t --logger_name tensorboard --log.project p --log.run r --seed 42
        --lora_r 8""",
        "gpt train --size 350M --out out --precision bf16 --resume --data shards "
        "--checkpoint-every 1000 --batch-tokens 1048576 --micro-batch 4 --warmup-tokens 2097152000 "
        "--tokens 3000000000000 --n-ctx 2048 --min-lr-ratio 0.1 --eval-every 1000 "
        "--eval-tokens 104857600 --optimizer adamw --lr 4e-4 --weight-decay 0.1 "
        "--track tensorboard --seed 42",
    ),
    "Megatron-LM": (
        "gpt train",
        """pretrain_gpt.py --tensor-model-parallel-size 2 --pipeline-model-parallel-size 4
        --sequence-parallel --use-distributed-optimizer --num-layers 24 --hidden-size 1024
        --ffn-hidden-size 4096 --num-attention-heads 16 --seq-length 1024
        --max-position-embeddings 1024 --micro-batch-size 4 --global-batch-size 32 --lr 0.00015
        --train-iters 500000 --lr-decay-iters 320000 --lr-decay-style cosine --min-lr 1.5e-5
        --weight-decay 0.1 --lr-warmup-fraction .01 --clip-grad 1.0 --adam-beta1 0.9
        --adam-beta2 0.95 --init-method-std 0.006 --bf16 --data-path owt --vocab-file v.json
        --merge-file m.txt --tokenizer-type GPT2BPETokenizer --split 949,50,1 --log-interval 100
        --save-interval 10000 --eval-interval 1000 --eval-iters 10 --save out --load out
        --tensorboard-dir t --distributed-backend nccl --recompute-activations
        --recompute-granularity selective --use-flash-attn --attention-dropout 0.1
        --no-masked-softmax-fusion --overlap-grad-reduce --transformer-impl local
        --untie-embeddings-and-output-weights --log-throughput --num-workers 2
        --rampup-batch-size 16 16 1000""",
        "gpt train --layout tp=2,pp=4 --n-layer 24 --d-model 1024 --n-head 16 --n-ctx 1024 "
        "--micro-batch 4 --batch-tokens 32768 --lr 0.00015 --tokens 16384000000 "
        "--decay-tokens 10485760000 --lr-schedule cosine --min-lr-ratio 0.1 --weight-decay 0.1 "
        "--warmup-tokens 163840000 --precision bf16 --data owt --checkpoint-every 10000 "
        "--eval-every 1000 --eval-tokens 327680 --out out --resume --track tensorboard "
        "--recompute selective --dropout 0.1",
    ),
    "torchtitan": (
        "gpt train",
        """--job.config_file a.toml --job.dump_folder out --model.name llama3 --model.flavor 350M
        --training.local_batch_size 8 --training.global_batch_size 64 --training.seq_len 2048
        --training.steps 1000 --training.max_norm 1.0 --training.dataset c4 --training.compile
        --training.seed 1 --optimizer.name AdamW --optimizer.lr 3e-4 --optimizer.eps 1e-8
        --lr_scheduler.warmup_steps 200 --parallelism.tensor_parallel_degree 2
        --parallelism.pipeline_parallel_degree 2 --parallelism.data_parallel_shard_degree 4
        --parallelism.data_parallel_replicate_degree 2 --parallelism.context_parallel_degree 1
        --activation_checkpoint.mode selective --checkpoint.enable_checkpoint
        --checkpoint.interval 500 --metrics.log_freq 10 --metrics.enable_tensorboard
        --metrics.enable_wandb --profiling.enable_profiling --training.mixed_precision_param bfloat16
        --comm.init_timeout_seconds 300""",
        "gpt train --config a.toml --out out --size 350M --micro-batch 8 --batch-tokens 131072 "
        "--n-ctx 2048 --tokens 131072000 --data c4 --compile on --seed 1 --optimizer adamw --lr 3e-4 "
        "--warmup-tokens 26214400 --layout tp=2,pp=2,shard=4,dp=2 --recompute selective "
        "--checkpoint-every 500 --track tensorboard,wandb --precision bf16",
    ),
    "lm-evaluation-harness": (
        "gpt eval",
        """--model hf --model_args pretrained=runs/a,dtype=bfloat16 --tasks lambada,piqa
        --num_fewshot 5 --batch_size auto:4 --max_batch_size 64 --device cuda:0 --output_path out
        --limit 100 --use_cache c --cache_requests true --check_integrity --write_out
        --log_samples --system_instruction s --apply_chat_template --fewshot_as_multiturn
        --show_config --include_path d --gen_kwargs temperature=0 --verbosity INFO
        --wandb_args project=p --hf_hub_log_args hub_results_org=o --predict_only --seed 1234
        --trust_remote_code --confirm_run_unsafe_code --metadata a=b""",
        "gpt eval runs/a --task lambada,piqa,d --shots 5 --device cuda:0 --out out --limit 100 "
        "--records c --show 1 --shots-seed 1234",
    ),
    "generate of transformers": (
        "gpt sample",
        """--model_name_or_path runs/a --prompt Once --max_new_tokens 20 --num_return_sequences 1
        --do_sample True --num_beams 4 --temperature 0.7 --top_k 50 --top_p 0.9 --typical_p 0.9
        --repetition_penalty 1.2 --length_penalty 1.0 --no_repeat_ngram_size 3 --early_stopping
        --min_length 10 --use_cache True --torch_dtype float16 --device_map auto --seed 1
        --trust_remote_code --penalty_alpha 0.6 --num_beam_groups 2 --diversity_penalty 1.0
        --attn_implementation sdpa --compile --load_in_8bit --stream --logprobs""",
        "gpt sample runs/a Once --max-tokens 20 --num-samples 1 --beam 4 --repetition-penalty 1.2 "
        "--precision fp16 --seed 1 --quantize int8 --json",
    ),
    "llama.cpp and vLLM": (
        "gpt sample",
        """-m runs/a -p Once -n 20 --temp 0.7 --top-k 40 --top-p 0.9 --min-p 0.05
        --repeat-penalty 1.1 --repeat-last-n 64 --frequency-penalty 0 --presence-penalty 0 --ctx-size
        2048 --n-gpu-layers 99 --threads 8 --mlock --mirostat 2 --seed 1 --reverse-prompt User:
        --tensor-parallel-size 2 --max-model-len 4096 --gpu-memory-utilization 0.9 --dtype bfloat16
        --served-model-name x --max-num-seqs 8 --trust-remote-code --enforce-eager --swap-space 4
        --ignore-eos --chat-template t""",
        "gpt sample runs/a Once --max-tokens 20 --temperature 0.7 --top-k 40 --top-p 0.9 "
        "--repetition-penalty 1.1 --seed 1 --stop User: --precision bf16 --batch-size 8",
    ),
    "preprocess_data.py of Megatron-LM": (
        "gpt build-shards",
        """--input a.jsonl --output-prefix out --json-keys text --tokenizer-type GPT2BPETokenizer
        --vocab-file v.json --merge-file m.txt --append-eod --workers 8 --dataset-impl mmap
        --log-interval 100 --partitions 2 --split-sentences --lang en""",
        "gpt build-shards a.jsonl --out out --field text --tokenizer v.json --workers 8",
    ),
    "calculators of transformer-math": (
        "gpt cost",
        """--num-layers 12 --hidden-size 768 --num-attention-heads 12 --sequence-length 1024
        --vocab-size 50257 --ffn-hidden-size 3072 --num-gpus 8 --tensor-parallel-size 2
        --pipeline-parallel-size 2 --zero-stage 1 --batch-size-per-gpu 4 --checkpoint-activations
        --tokens 10B --global-batch-size 32 --gpu-type a100 --train-iters 100 --utilization 0.4
        --hourly-rate 2""",
        "gpt cost --n-layer 12 --d-model 768 --n-head 12 --n-ctx 1024 --vocab-size 50257 --d-ff 3072 "
        "--gpus 8 --layout tp=2,pp=2 --micro-batch 4 --recompute full --tokens 3276800 "
        "--batch-tokens 32768 --gpu a100 --mfu 0.4 --price 2",
    ),
}


@pytest.mark.parametrize("tool", LINES_OF_TOOLS)
def test_whole_lines_of_other_tools(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, typed, ours = LINES_OF_TOOLS[tool]
    line, *left_out = corrected(command, shlex.split(typed), options_of(command)).splitlines()
    assert line == ours
    assert not [reason for reason in left_out if ": unknown" in reason]
    words = {word.partition("=")[0].replace("_", "-") for word in shlex.split(typed)}
    for reason in left_out:
        names = reason.removeprefix("without ").partition(": ")[0].split(", ")
        assert {name.replace("_", "-") for name in names} <= words


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            "--size gpt2 --learning-rate 1 --xyzzy 3 --block-sizes 4",
            "gpt train --size gpt2 --lr 1\n"
            "without --xyzzy: unknown\n"
            "without --block-sizes: unknown; did you mean --n-ctx?",
        ),
        (
            "--size gpt2 --epochs 3",
            "gpt train --size gpt2\nwithout --epochs: the length of a run is counted in tokens here: "
            "epochs times the training tokens; shards: no such shard folder",
        ),
        ("--sizee gpt2 --lr 1", ""),  # misspelled, not of another tool
        ("--size gpt2 --fp16 False", "gpt train --size gpt2\nwithout --fp16: it is false"),
        ("--size gpt2 --decay_lr False", "gpt train --size gpt2 --lr-schedule constant"),
        ("--size gpt2 --wandb --resume=False", "gpt train --size gpt2 --track wandb\nwithout --resume: it is false"),
        ("pythia-160m --max-lr 1", "gpt train --lr 1\nwithout pythia-160m: --size names a size of the papers, --init-from a model's weights"),
    ],
)  # fmt: skip
def test_words_that_are_left_out_are_named_with_the_reason(
    args: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert corrected("gpt train", shlex.split(args), options_of("gpt train")) == text


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("R x --do_sample False", "R x --greedy"),
        ("R x --do_sample=False --top_k 50 --temp 0.7", "R x --greedy"),
        ("R x --num_beams 4 --top_k 50", "R x --beam 4"),
        ("R x --do_sample True --temp 0.7", "R x --temperature 0.7"),
    ],
)
def test_sampling_options_have_no_part_in_a_line_without_sampling(args: str, line: str) -> None:
    text = corrected("gpt sample", shlex.split(args), options_of("gpt sample"))
    assert text.partition("\n")[0] == f"gpt sample {line}"
