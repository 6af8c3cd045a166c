"""A model's modules without its weights: what an adapter's names mean, and which tensor of the files each is."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from alpaca_ray.errors import ModelError


@dataclass(frozen=True)
class Skeleton:
    """Shapes and names of a causal language model, made from its configuration alone.

    Attributes:
        shapes: shape of ``MODULE.weight``, by the module's path.
        transposed: modules whose weight lies as ``(in, out)``.
        prefix: what old checkpoints of this family leave out at the start of names (``model``, ``transformer``).
        embedding, head: paths of the input embedding and of the language-model head.
        tied: the two share one tensor.
    """

    shapes: dict[str, tuple[int, ...]]
    transposed: frozenset[str]
    prefix: str
    embedding: str
    head: str
    tied: bool

    def tensor(self, name: str, files: Container[str]) -> str:
        """Return the name that the files give to a parameter; the parameter's own where they do not hold it."""
        short = name.removeprefix(f"{self.prefix}.")
        return short if name not in files and short in files else name


def skeleton_of(folder: Path, *, flag: str) -> Skeleton:
    """Return the skeleton of the model in a folder.

    Raises:
        ModelError: its configuration is of no causal language model that transformers knows.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{flag} {folder}: its architecture cannot be built: {reason}") from error
    shapes, transposed, paths = {}, set(), {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor):
            shapes[path] = tuple(weight.shape)
            paths[id(module)] = path
            if type(module).__name__ == "Conv1D":
                transposed.add(path)
    return Skeleton(
        shapes=shapes,
        transposed=frozenset(transposed),
        prefix=model.base_model_prefix,
        embedding=paths[id(model.get_input_embeddings())],
        head=paths.get(id(model.get_output_embeddings()), ""),
        tied=bool(getattr(config.get_text_config(), "tie_word_embeddings", False)),
    )
