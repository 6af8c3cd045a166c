"""What a worker's memory is now, and was at most. Imports torch."""

from __future__ import annotations

import os
import resource
import sys

import psutil
import torch


def in_use(use_gpu: bool) -> int:
    """Return bytes in use: of the whole process (resident), or, on a GPU, what torch's allocator gave out at most."""
    return peak(use_gpu) if use_gpu else int(psutil.Process(os.getpid()).memory_info().rss)


def peak(use_gpu: bool) -> int:
    """Return the most bytes in use since the process began: resident ones, or of the fullest GPU's allocator."""
    if use_gpu:
        return max(int(torch.cuda.max_memory_allocated(device)) for device in range(torch.cuda.device_count()))
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
