"""Turn what training wrote into what other programs read. Run with --help for the commands.

python jobs/export.py merge --adapter out/train --output_dir out/merged
"""

from __future__ import annotations

from alpaca_ray.errors import run_main
from alpaca_ray.settings.commands import parse_command
from alpaca_ray.settings.export import ExportSettings, MergeSettings, StateDictSettings

DESCRIPTION = (
    "Turn what training wrote into what other programs read. On the CPU, tensor by tensor: no command holds the model "
    "in memory twice. Each writes run.json last, and appears in its output folder when it is complete."
)
COMMANDS: dict[str, tuple[type[ExportSettings], str]] = {
    "merge": (
        MergeSettings,
        "Merge a LoRA adapter into its base model: a Hugging Face checkpoint with tokenizer, generation config and "
        "templates. Sums are made in float32 and rounded once. DoRA, and adapters with weights of their own, are "
        "merged by peft, with the whole model in memory once.",
    ),
    "state-dict": (
        StateDictSettings,
        "Write a Llama in the layout that Meta released it in: consolidated.00.pth and params.json.",
    ),
}


def main() -> None:
    """Parse the command and run it."""
    settings = parse_command(COMMANDS, description=DESCRIPTION)
    from alpaca_ray.export.run import export

    export(settings)


if __name__ == "__main__":
    run_main(main)
