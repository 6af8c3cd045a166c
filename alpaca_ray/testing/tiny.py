"""Tiny, randomly initialised models in the Hugging Face layout, made in a second without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from alpaca_ray.records import read_seed_tasks

Family = Literal["llama", "opt", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3"]


def make_tiny_model(
    folder: Path, family: Family = "llama", *, pad_is_eos: bool = False, seed: int = 0, width: int = 32
) -> Path:
    """Write a random model of about 100 K parameters (at a width of 32) and its tokenizer into ``folder``, returned.

    The tokenizer is a byte-level BPE of 512 tokens trained on the shipped seed tasks, with Llama's ``<unk>``, ``<s>``
    and ``</s>``; it has no padding token, as Llama's has none, unless ``pad_is_eos`` makes it the end token.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, OPTConfig

    tokenizer = _tokenizer()
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "opt":
        config: Any = OPTConfig(ffn_dim=2 * width, word_embed_proj_dim=width, **common)
    else:
        # Gemma and Qwen3 write down the width of a head; the others divide.
        head = {"head_dim": width // 4} if family in ("gemma", "gemma2", "gemma3", "qwen3") else {}
        kind = "gemma3_text" if family == "gemma3" else family
        config = AutoConfig.for_model(
            kind, intermediate_size=2 * width, num_key_value_heads=2, tie_word_embeddings=True, **head, **common
        )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tasks = read_seed_tasks("seeds")
    core.train_from_iterator((f"{task['instruction']}\n{task['input']}\n{task['output']}" for task in tasks), trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=1024
    )
