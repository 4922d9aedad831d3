"""What the families' processors in transformers' own form have in common."""

from __future__ import annotations

from typing import Any

import torch


class TextDecoding:
    """Rows of ids back to text. A processor adds `tokenizer` and `placeholder_token_id`."""

    tokenizer: Any
    placeholder_token_id: int

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """The text of a row, placeholders left out: they may lie outside the vocabulary."""
        ids = torch.as_tensor(token_ids).tolist()
        text: str = self.tokenizer.decode([i for i in ids if i != self.placeholder_token_id], **kwargs)
        return text

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """`decode` of each row."""
        return [self.decode(row, **kwargs) for row in sequences]
