"""Writes a Llama of a known size with random weights, for benchmarks of training on a GPU without any download.

The tokenizer is the embedded model's. Then: `python benchmarks/train.py --model FOLDER --data_path RECORDS`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Width, width of the feed-forward part, layers, heads, key heads, of the published configurations.
SHAPES = {
    "tiny": (64, 128, 2, 4, 2),  # to try the benchmark itself
    "1b": (2048, 8192, 16, 32, 8),  # Llama 3.2 1B
    "7b": (4096, 11008, 32, 32, 32),  # Llama 1 and 2 7B
    "8b": (4096, 14336, 32, 32, 8),  # Llama 3.1 8B
}
VOCABULARY = {"1b": 128_256, "7b": 32_000, "8b": 128_256}


def main() -> None:
    """Write the model and print its number of parameters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path, help="a new folder; 2 bytes a parameter")
    options = parser.parse_args()
    if options.folder.exists():
        sys.exit(f"error: {options.folder} exists: name a new folder")
    print(f"{make(options.shape, options.folder):,} parameters in {options.folder}")


def make(shape: str, folder: Path) -> int:
    """Write the model of a shape into ``folder`` in bfloat16 and return how many parameters it has."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from alpaca_ray.models import EMBEDDED, resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(EMBEDDED))
    width, inner, layers, heads, key_heads = SHAPES[shape]
    config = LlamaConfig(
        # The tokenizer's ids must fit, also where the published vocabulary is smaller.
        vocab_size=max(VOCABULARY.get(shape, 0), len(tokenizer)),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape in ("tiny", "1b"),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # in float32 8 B parameters alone would take 32 GB
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(previous)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(part.numel() for part in model.parameters())


if __name__ == "__main__":
    main()
