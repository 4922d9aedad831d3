"""Models whose losses can be worked out by hand, and the evaluation's child process with their adapter.

The models are the project's own tiny VLM with chosen weights, so scoring takes its ordinary way. Run as a script it
is the child process; a file in a checkpoint's folder then makes that checkpoint misbehave.

Legend: V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from harness.evaluation.lmms.child import main
from harness.models.forward import scored_forward
from harness.models.tiny.config import TinyVLMConfig
from harness.models.tiny.model import TinyVLMForConditionalGeneration
from harness.models.tiny.processor import END, TinyProcessor, train_tokenizer
from harness.models.tiny.sizes import visual_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from harness.config.recipe import Recipe
    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Batch
    from regate.types import Decision

FRAMES, SIZE, GRID = 2, 32, 2
CORPUS = (
    "What is it? It is red. It is blue. It is very very green. Answer with the letter of the right option.",
    "What moves? A ball moves left. A cube moves right. Nothing moves at all. A. B. C. the right option",
)


def processor() -> TinyProcessor:
    tokenizer = train_tokenizer(CORPUS)
    return TinyProcessor(tokenizer, frames=FRAMES, size=SIZE, visual_tokens=visual_tokens(FRAMES, GRID, 2, 2))


def model(text: Mapping[str, Any], seed: int = 0) -> TinyVLMForConditionalGeneration:
    """The tiny VLM of two frames of 32 pixels, weights at random from the seed."""
    known = processor()
    torch.manual_seed(seed)
    config = TinyVLMConfig(
        vision_config={"channels": [4, 4, 8, 8], "image_size": SIZE},
        text_config={
            "model_type": "qwen2",
            "vocab_size": known.vocabulary,
            "num_key_value_heads": text["num_attention_heads"],
            **text,
        },
        frames=FRAMES,
        placeholder_token_id=known.placeholder_id,
        tie_word_embeddings=False,
    )
    return TinyVLMForConditionalGeneration(config).eval()


def random_model(seed: int) -> TinyVLMForConditionalGeneration:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = model(sizes, seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)  # far enough from uniform that every input matters
    return network


def bigram_model(follows: Mapping[str, Mapping[str, float]]) -> TinyVLMForConditionalGeneration:
    """P(next word | word) as given, the rest of each row's mass spread evenly over the other words.

    The decoder's blocks add nothing: embeddings are one-hot, the norm scales them by sqrt(V), the output embedding
    divides by it and holds the log-probabilities.
    """
    known = processor()
    size = known.vocabulary + known.vocabulary % 2
    sizes = {"hidden_size": size, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1}
    network = model({**sizes, "rms_norm_eps": 0.0})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        network.get_input_embeddings().weight.copy_(torch.eye(known.vocabulary, size))
        table_VV = log_table(known, follows)
        network.get_output_embeddings().weight.copy_(
            torch.nn.functional.pad(table_VV.T, (0, size - known.vocabulary)) / math.sqrt(size)
        )
    return network


def log_table(known: TinyProcessor, follows: Mapping[str, Mapping[str, float]]) -> Tensor:
    """log P[word, next word]."""
    table_VV = torch.full((known.vocabulary, known.vocabulary), 1.0 / known.vocabulary)
    for word, rows in follows.items():
        rest = (1.0 - sum(rows.values())) / (known.vocabulary - len(rows))
        table_VV[token(known, word)] = rest
        for after, probability in rows.items():
            table_VV[token(known, word), token(known, after)] = probability
    return table_VV.log()


def token(known: TinyProcessor, word: str) -> int:
    token = known.tokenizer.convert_tokens_to_ids(word)
    assert token != known.tokenizer.unk_token_id, word
    return int(token)


def words(text: str) -> list[str]:
    """An answer as the tokenizer splits it, with the marker that opens it and the one that closes it."""
    return ["<|assistant|>", *text.lower().replace(".", " .").split(), END]


class KnownAdapter:
    """The `Adapter` protocol for the models above; only what evaluation uses."""

    name = "known"
    frame_rule: FrameRule = "spread"

    def __init__(self, recipe: Recipe | None = None) -> None:
        self.recipe = recipe
        self.directory: Path | None = None
        self.left = -1

    def processor(self) -> TinyProcessor:
        return processor()

    def save(self, model: nn.Module, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(directory)  # type: ignore[operator]

    def load(self, directory: Path) -> nn.Module:
        if (directory / "broken").exists():
            raise RuntimeError("the weights do not fit")
        self.directory = directory
        return TinyVLMForConditionalGeneration.from_pretrained(directory)

    def forward(self, model: nn.Module, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        """Where a file says so, the process that finds it first is killed after that many forward passes."""
        if self.directory is not None:
            with suppress(FileNotFoundError):
                self.left = int((self.directory / "killed").read_text())
                (self.directory / "killed").unlink()
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            with (self.directory / "forwards").open("a") as file:
                file.write(f"{os.getpid()}\n")
        return scored_forward(model, batch, decision)


def without_network(*arguments: Any, **settings: Any) -> None:
    raise AssertionError(f"the evaluation reached for the network: {arguments}")


def child(arguments: Sequence[str]) -> int:
    socket.getaddrinfo = without_network  # type: ignore[assignment]
    socket.socket.connect = without_network  # type: ignore[assignment,method-assign]
    return main(arguments, make_adapter=KnownAdapter)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(child(sys.argv[1:]))
