"""The reference losses of a data set (Eq. 1): a frozen text-only LM reads every sample once, before training.

Legend: B rows, S expanded length, K positions that are read, N candidates of the batch, D hidden size.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from regate import config, process
from regate.candidates import Candidates, candidates_of, in_order
from regate.compaction import compact
from regate.elision import Elision, attach
from regate.errors import ConfigError, LayoutError
from regate.head import ScoredLM
from regate.loss import token_loss
from regate.types import Kind
from regate.wrapping import decoder_of, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch.distributed import ProcessGroup

    from regate.config import Placeholders
    from regate.reference import ReferenceStore, ReferenceWriter
    from regate.types import Layout


class TextBatch(Protocol):
    """Rows for the teacher, in expanded length: no media are needed."""

    @property
    def sample_ids_B(self) -> Tensor: ...

    @property
    def input_ids_BS(self) -> Tensor: ...

    @property
    def layout(self) -> Layout: ...


class TextBackbone(nn.Module):
    """A multimodal model's own text-only LM: its decoder stack and its head, sharing their weights.

    Score before the training starts, or give it a copy of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        inner: Any = unwrap(model)
        self.config = inner.config
        self.base_model = decoder_of(model)
        self._head = inner.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        return self.base_model

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self._head
        return head


def score_reference(
    model: nn.Module,
    batches: Iterable[TextBatch],
    writer: ReferenceWriter,
    *,
    placeholder_id: int,
    placeholders: Placeholders = "masked",
    dtype: torch.dtype | str = torch.bfloat16,
    candidates: config.Candidates = "targets",
    progress: Callable[[int], None] | None = None,
    shared_by: ProcessGroup | None = None,
    subtract: Callable[[TextBatch], Tensor] | None = None,
) -> ReferenceStore:
    """Score what is not scored yet, and seal the store.

    Resumable: batches whose samples the writer has are skipped, so a second call with the same batches ends in the
    same values bit for bit. Under torch.distributed every process scores its own batches
    (`ReferenceWriter.share` names disjoint samples) and waits for the others; processes that know nothing of each
    other call `write_losses` and then `writer.finish()` in one of them.

    Args:
        model: a causal LM with the student's tokenizer, or `TextBackbone(student)`.
        batches: each sample in one of them.
        placeholder_id: token id that stands at visual positions.
        placeholders: how the teacher sees those positions. "masked": not at all, the text keeps its original
            positions; "compact": not at all, the text closes up; "attended": it reads the placeholder tokens.
        dtype: of the forward pass; bfloat16 falls to float32 where the device does not compute in it. The cross
            entropy is float32.
        candidates: must be the gate's.
        progress: called with the number of samples of each batch.
        shared_by: the processes over which the model's weights are spread (torch's fully_shard), where they are:
            `model` is then the `ScoredLM` that was spread. Each of them takes part in the others' forward passes,
            also when it has no batch left.
        subtract: the losses of another teacher at the candidates of a batch, row by row: float32 N, nats. What is
            stored is then the difference, text-only less this one (`ReferenceConfig.pictures`).

    Raises:
        LayoutError: a target directly follows a visual position, which the teacher does not read.
        NonFiniteLossError: a loss is not finite.
        StoreError: samples are missing at the end.
    """
    write_losses(
        model,
        batches,
        writer,
        placeholder_id=placeholder_id,
        placeholders=placeholders,
        dtype=dtype,
        candidates=candidates,
        progress=progress,
        shared_by=shared_by,
        subtract=subtract,
    )
    process.barrier()
    return writer.finish()


@torch.inference_mode()
def write_losses(
    model: nn.Module,
    batches: Iterable[TextBatch],
    writer: ReferenceWriter,
    *,
    placeholder_id: int,
    placeholders: Placeholders = "masked",
    dtype: torch.dtype | str = torch.bfloat16,
    candidates: config.Candidates = "targets",
    progress: Callable[[int], None] | None = None,
    shared_by: ProcessGroup | None = None,
    subtract: Callable[[TextBatch], Tensor] | None = None,
) -> None:
    """`score_reference` without the end: score this process's batches."""
    device = next(model.parameters()).device
    done = writer.done_ids()
    with _frozen(model) as elide, _precision(device, dtype):
        scored = model if isinstance(model, ScoredLM) else ScoredLM(model)
        reader = _Reader(scored, elide, placeholder_id, placeholders, device, shared_by)
        for batch in batches:
            ids = batch.sample_ids_B.tolist()
            new = [row for row, sample_id in enumerate(ids) if sample_id not in done]
            if new:  # the whole batch is read: a row's last bits depend on the rows beside it
                of_batch = candidates_of(batch.layout, candidates)
                values_BS = torch.zeros(of_batch.mask_BS.shape)
                values_N = reader.losses(batch, of_batch).float().cpu()
                if subtract is not None:
                    values_N = values_N - subtract(batch).float().cpu()
                values_BS[of_batch.mask_BS] = values_N
                losses = in_order(of_batch, values_BS)
                writer.write([ids[row] for row in new], [losses[row] for row in new])
            if progress is not None:
                progress(len(ids))
        reader.help_others()


@dataclass(frozen=True, slots=True)
class _Reader:
    """A teacher, and how it sees placeholders."""

    scored: ScoredLM
    elide: Elision
    placeholder_id: int
    placeholders: Placeholders
    device: torch.device
    shared_by: ProcessGroup | None = None

    def losses(self, batch: TextBatch, candidates: Candidates) -> Tensor:
        """-log p_ref at every candidate: float32 N, row by row."""
        if int(candidates.count_B.sum()) == 0:
            return torch.zeros(0)
        layout = batch.layout
        visual_BS = layout.kind_BS == Kind.VISUAL
        read_BS = _read(layout, candidates, self.placeholders)
        # A placeholder that is not read may lie outside the teacher's vocabulary.
        filler = self.placeholder_id if self.placeholders == "attended" else 0
        ids_BS = torch.where(visual_BS, filler, batch.input_ids_BS.cpu())
        predictor_BS = torch.nn.functional.pad(candidates.mask_BS[:, 1:], (0, 1), value=False)
        if self.placeholders == "compact":
            compaction = compact(read_BS)
            predictor_BS = compaction.gather(predictor_BS) & compaction.valid_BK
            logits_NV = self._logits(predictor_BS, compaction.gather(ids_BS), compaction.valid_BK)
        elif bool((read_BS != layout.valid_BS).any()):
            with self.elide.only(read_BS):
                logits_NV = self._logits(predictor_BS, ids_BS, layout.valid_BS)
        else:
            logits_NV = self._logits(predictor_BS, ids_BS, layout.valid_BS)
        return token_loss(logits_NV, candidates.tokens_BS[candidates.mask_BS].to(self.device, non_blocking=True))

    def help_others(self) -> None:
        """Take part in the passes of those that still have batches: one position is enough to put the weights
        together."""
        if self.shared_by is None:
            return
        one_BS = torch.ones((1, 1), dtype=torch.bool)
        while self._any_works(False):
            self._forward(one_BS, one_BS.long() - 1, one_BS)

    def _any_works(self, this: bool) -> bool:
        """Whether a process has a batch for the pass that comes next; all of them ask before each."""
        working = torch.tensor(int(this), device=self.device)
        dist.all_reduce(working, dist.ReduceOp.MAX, self.shared_by)
        return bool(working)

    def _logits(self, predictor_BS: Tensor, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        if self.shared_by is not None:
            self._any_works(True)
        return self._forward(predictor_BS, ids_BS, mask_BS)

    def _forward(self, predictor_BS: Tensor, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        logits_NV: Tensor = self.scored(
            predictor_BS=predictor_BS,
            input_ids=ids_BS.to(self.device, non_blocking=True),
            attention_mask=mask_BS.long().to(self.device, non_blocking=True),
        )
        return logits_NV


def _read(layout: Layout, candidates: Candidates, placeholders: Placeholders) -> Tensor:
    """The positions that the teacher reads: bool BS."""
    if placeholders == "attended":
        return layout.valid_BS
    visual_BS = layout.kind_BS == Kind.VISUAL
    after_visual_BS = torch.nn.functional.pad(visual_BS[:, :-1], (1, 0), value=False)
    if bool((candidates.mask_BS & after_visual_BS).any()):
        row = int((candidates.mask_BS & after_visual_BS).any(dim=1).nonzero()[0])
        raise LayoutError(
            f"row {row}: a target directly follows a visual position, which the teacher does not read; put a "
            "template token between them, or use placeholders: attended"
        )
    return layout.valid_BS & ~visual_BS


@contextmanager
def _frozen(model: nn.Module) -> Iterator[Elision]:
    """Eval mode and an elision, both undone at the end."""
    training, elide = model.training, attach(model)
    model.eval()
    try:
        yield elide
    finally:
        elide.remove()
        model.train(training)


def _precision(device: torch.device, dtype: torch.dtype | str) -> Any:
    """Autocast for a bfloat16 forward pass: the weights, which may be the student's own, stay as they are."""
    wanted = {"bfloat16": torch.bfloat16, "float32": torch.float32}.get(str(dtype).removeprefix("torch."))
    if wanted is None:
        raise ConfigError(f"dtype of the reference pass must be bfloat16 or float32, got {dtype}")
    if wanted == torch.float32 or device.type != "cuda" or not torch.cuda.is_bf16_supported():
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
