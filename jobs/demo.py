"""Run the whole loop on this machine with the embedded model: generate, train, serve, compare."""

from alpaca_ray.errors import run_main
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.demo import DemoSettings


def main() -> None:
    settings = parse_settings(DemoSettings, description=__doc__ or "")
    from alpaca_ray.demo import run_demo

    run_demo(settings)


if __name__ == "__main__":
    run_main(main)
