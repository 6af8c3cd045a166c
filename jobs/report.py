"""Report on a set of instruction records: what they ask for, how long they are, what was rejected and what it cost.

python jobs/report.py out
"""

from __future__ import annotations

from alpaca_ray.errors import run_main
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.report import ReportSettings

DESCRIPTION = (
    "Report on a folder that generation or deduplication wrote, or on any file of records: one self-contained HTML "
    "page (report.html), its figures as PNG files (figures/), the records in one schema (data/train.jsonl) and a "
    "dataset card (README.md). With --push_to_hub these files are uploaded, to a private repository unless --public is "
    "given."
)


def main() -> None:
    """Parse the settings and report."""
    settings = parse_settings(ReportSettings, description=DESCRIPTION)
    from alpaca_ray.report.run import write_report

    write_report(settings)


if __name__ == "__main__":
    run_main(main)
