"""Where the model of the guide's samples lies, and the same model without the library."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "models" / "city-facts"


class Plain:
    """The same model without the library, for hand-written hooks."""

    def __init__(self, tokenizer: Any) -> None:
        self.module = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
        self.tokenizer = tokenizer

    def __call__(self, prompt: str) -> Any:
        with torch.no_grad():
            return self.module(**self.tokenizer(prompt, return_tensors="pt"))

    def logits(self, prompt: str) -> torch.Tensor:
        logits: torch.Tensor = self(prompt).logits
        return logits

    def output(self, path: str, prompt: str) -> Any:
        """What a submodule returns."""
        seen: list[Any] = []
        with self.hooked(path, seen.append):
            self(prompt)
        return seen[0]

    def hooked(self, path: str, change: Any) -> Any:
        """Put a hook on a submodule; leaving the `with` takes it off."""
        return self.module.get_submodule(path).register_forward_hook(
            lambda _module, _args, output: change(output)
        )

    def generate(self, prompt: str, count: int) -> torch.Tensor:
        encoded = self.tokenizer(prompt, return_tensors="pt")
        tokens: torch.Tensor = self.module.generate(**encoded, max_new_tokens=count)
        return tokens
