"""Generate instruction records from seed tasks with a teacher model.

python jobs/generate.py --output_dir out --base_url http://127.0.0.1:8000/v1 --num_instructions_to_generate 100
"""

from __future__ import annotations

from alpaca_ray.errors import run_main
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.generate import GenerateSettings

DESCRIPTION = (
    "Generate instruction records as Stanford Alpaca did: seed tasks as examples in a prompt, new tasks from a teacher "
    "model, and only those kept that pass the filters and are new by ROUGE-L. Writes regen.json, journal.jsonl (every "
    "answer), rejected.jsonl (each dropped entry with its reason), metrics.json and run.json. A folder that holds only "
    "regen.json is taken up and extended."
)


def main() -> None:
    """Parse the settings and generate."""
    settings = parse_settings(GenerateSettings, description=DESCRIPTION)
    from alpaca_ray.generate.pipeline import generate

    generate(settings)


if __name__ == "__main__":
    run_main(main)
