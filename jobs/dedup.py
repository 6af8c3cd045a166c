"""Drop records whose instruction is too similar to an earlier one.

python jobs/dedup.py --data_path alpaca_data.json --output_dir out
"""

from __future__ import annotations

from alpaca_ray.errors import run_main
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.dedup import DedupSettings

DESCRIPTION = (
    "Go through records in order and keep each whose instruction's ROUGE-L with no earlier kept one is above the "
    "threshold, exactly as generation does. Writes kept.jsonl (every column as it was), rejected.jsonl (each dropped "
    "record with the reason, its nearest neighbour and their score), metrics.json and run.json; all of them at the "
    "end, or none. A run that is stopped, by whatever means, goes on with --resume."
)


def main() -> None:
    """Parse the settings and deduplicate."""
    settings = parse_settings(DedupSettings, description=DESCRIPTION)
    from alpaca_ray.dedup.pipeline import dedup

    dedup(settings)


if __name__ == "__main__":
    run_main(main)
