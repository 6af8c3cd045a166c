"""Turn what training wrote into what other programs read. Run with --help for the commands.

python jobs/export.py merge --adapter out/train --output_dir out/merged
"""

from __future__ import annotations

from alpaca_ray.errors import run_main
from alpaca_ray.settings import export as settings_of
from alpaca_ray.settings.commands import parse_command

DESCRIPTION = (
    "Turn what training wrote into what other programs read. On the CPU, tensor by tensor: no command holds the model "
    "in memory twice. Each writes run.json last, and appears in its output folder when it is complete."
)
COMMANDS: dict[str, tuple[type[settings_of.ExportSettings], str]] = {
    "merge": (
        settings_of.MergeSettings,
        "Merge a LoRA adapter into its base model: a Hugging Face checkpoint with tokenizer, generation config and "
        "templates. Sums are made in float32 and rounded once. Adapters that bring more than LoRA or DoRA of "
        "linear layers are merged by peft, with the whole model in memory once.",
    ),
    "state-dict": (
        settings_of.StateDictSettings,
        "Write a Llama in the layout that Meta released it in: consolidated.00.pth and params.json.",
    ),
    "diff make": (
        settings_of.DiffMakeSettings,
        "Write a fine-tuned model as its difference from its base, as Stanford Alpaca was released: of use only to who "
        "has the base. Of bit patterns rather than floats, so that recovery is exact.",
    ),
    "diff recover": (
        settings_of.DiffRecoverSettings,
        "Recover the fine-tuned model, bit for bit, from base and difference; every tensor is checked.",
    ),
    "ollama": (
        settings_of.OllamaSettings,
        "Write a model, or a base with its adapter merged in, and a Modelfile with its prompt and stop texts. "
        "Converting it is Ollama's own part (`ollama create`), and has not been run with this program.",
    ),
}


def main() -> None:
    """Parse the command and run it."""
    settings = parse_command(COMMANDS, description=DESCRIPTION)
    from alpaca_ray.export.run import export

    export(settings)


if __name__ == "__main__":
    run_main(main)
