"""Settings of ``jobs/demo.py``."""

from __future__ import annotations

from alpaca_ray.settings.base import Settings, setting


class DemoSettings(Settings):
    """The whole loop on the embedded model: generate, train, serve, compare."""

    output_dir: str = setting("out/demo", "Folder for everything the demo writes; an earlier demo's is replaced.")
    num_instructions_to_generate: int = setting(12, "New instructions to ask the embedded teacher for.", ge=1)
    generate_config: str = setting("jobs/configs/generate_embedded.yaml", "Settings of the generate stage.")
    train_config: str = setting("jobs/configs/demo_train.yaml", "Settings of the train stage.")
    num_questions: int = setting(4, "Held-out seed tasks that base and adapter are asked.", ge=1)
    max_answer_tokens: int = setting(64, "Longest answer, in tokens.", ge=1)
