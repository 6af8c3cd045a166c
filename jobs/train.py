"""Fine-tune a model on instruction records: LoRA or full, one worker or many. Run with --help for every setting."""

from __future__ import annotations

from alpaca_ray.errors import run_main
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.signals import interrupts_say

DESCRIPTION = """\
Fine-tune a model on instruction records with Ray Train. With no arguments: a LoRA adapter for the embedded model,
trained on the shipped seed tasks. The flag that names the model chooses whose defaults hold: --model (ours, shown
below), --base_model (Alpaca-LoRA's), --model_name_or_path (Stanford's, full fine-tuning). Every other field of
transformers' TrainingArguments is accepted as a flag, too."""


def main() -> None:
    """Parse the command line and train."""
    settings = parse_settings(TrainSettings, description=DESCRIPTION)
    with interrupts_say("before anything was written"):
        from alpaca_ray.train.runner import train  # after parsing: --help and a wrong flag need no Ray

        train(settings)


if __name__ == "__main__":
    run_main(main)
