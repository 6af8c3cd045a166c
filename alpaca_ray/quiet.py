"""Libraries kept quiet inside workers: what they say there would run through the driver's own lines."""

from __future__ import annotations

import logging
import os
import warnings

_CHATTY = ("bitsandbytes", "transformers", "accelerate", "peft", "torch.distributed")


def quiet_libraries(*, use_gpu: bool) -> None:
    """Silence warnings, progress bars and start-up notes of the model libraries in this process; errors stay."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not use_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate imports DeepSpeed, which warns while it looks
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as hub_logging

    hub_logging.set_verbosity_error()
    hub_logging.disable_progress_bar()
