"""Seven families of transformers at toy size: what a training loop may rely on, each with every part trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

import regate
from harness.common.errors import DataError
from harness.config.recipe import OptimizerRecipe
from harness.models.hf.flops import patches_of, sizes_of
from harness.models.hf.model import parts_of, total
from harness.models.hf.sizes import FAMILIES, Plain, VisionFlops, footprint_of, toy_fields, vision_flops
from harness.training import checkpoint
from harness.training.optimizer import make_optimizer
from harness.training.placement.parallel import Replicated
from harness.training.recompute import recompute_first
from regate.types import IGNORE, Kind
from tests.contract.test_adapters import (  # noqa: F401 - what every adapter promises, asked of every family here
    test_checkpoint_round_trip,
    test_elision_attaches_and_computes_fewer_positions,
    test_fingerprints_follow_the_weights,
    test_forward_scores_what_the_plain_model_says,
    test_generation_from_a_prompt,
    test_layout_of_a_batch_is_consistent,
    test_pixels_travel_as_bytes_and_are_what_the_model_reads,
    test_processor_is_deterministic_and_survives_a_new_adapter,
    test_shape_is_that_of_the_decoder,
    test_teacher_is_frozen_and_reads_the_student_s_tokens,
    test_text_alone_reaches_everything_that_is_trained,
    test_text_only_view_has_the_layout_of_the_full_one,
)
from tests.harness.worlds.transformers_models import (
    PARAMS,
    encoded,
    gradients,
    in_double,
    loss_of,
    made,
    recipe_of,
    sample,
    samples,
)

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.sample import Batch


@pytest.fixture(scope="module", params=PARAMS)
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(recipe_of(tmp_path_factory.mktemp(request.param), request.param))


def batch_of(adapter: Any, *places: int) -> Batch:
    chosen = samples(adapter)
    return in_double(adapter.processor().collate(encoded(adapter, [chosen[place] for place in places])))


def dense(batch: Batch) -> regate.Decision:
    return regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=0)


def half(batch: Batch) -> regate.Decision:
    config = regate.GateConfig(keep_ratio=0.5, warmup_steps=0, dense_steps=0, selection="random")
    return regate.Gate(config, None).decide(batch.layout, batch.sample_ids_B, step=0)


def run(adapter: Any, student: Any, batch: Batch, decision: regate.Decision, execution: Any) -> Any:
    """Logits, gradients: under an elision of this kind, or None."""
    student.zero_grad()
    elide = None if execution is None else regate.attach(student, execution=execution)
    try:
        if elide is None:
            logits_NV, targets_N = adapter.forward(regate.ScoredLM(student), batch, decision)
        else:
            with elide(decision):
                logits_NV, targets_N = adapter.forward(regate.ScoredLM(student), batch, decision)
    finally:
        if elide is not None:
            elide.remove()
    regate.token_loss(logits_NV, targets_N).sum().backward()
    return logits_NV.detach(), gradients(student)


def test_every_trained_tensor_has_a_gradient_whatever_the_media(adapter: Any) -> None:
    student = adapter.student().double().train()
    for places in ((0,), (1,), (2,), (0, 1, 2, 3)):
        student.zero_grad(set_to_none=True)
        batch = batch_of(adapter, *places)
        loss_of(adapter, regate.ScoredLM(student), batch, dense(batch)).backward()
        without = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
        assert without == [], places
    counts = {group.name: group.counts() for group in adapter.parameter_groups(student)}
    assert all(part["trained"] > 0 for part in counts.values())
    assert sum(part["parameters"] for part in counts.values()) == sum(p.numel() for p in student.parameters())


def test_a_white_picture_leaves_the_loss_of_text_alone_as_it_is(adapter: Any) -> None:
    student = adapter.student().train()
    batch = adapter.processor().collate(encoded(adapter, [samples(adapter)[2]]))
    assert not any(name.startswith("pixel_values") for name in batch.inputs)
    with_picture = loss_of(adapter, regate.ScoredLM(student), batch, dense(batch))
    student.base_model._forward_hooks.clear()
    student.base_model._forward_hooks_with_kwargs.clear()
    assert torch.equal(with_picture, loss_of(adapter, regate.ScoredLM(student), batch, dense(batch)))


def test_all_kept_is_dense(adapter: Any) -> None:
    student, batch = adapter.student().double().train(), batch_of(adapter, 0, 1, 2, 3)
    plain = run(adapter, student, batch, dense(batch), None)
    kept = run(adapter, student, batch, dense(batch), "compact")
    assert torch.equal(plain[0], kept[0])
    assert all(torch.equal(plain[1][name], kept[1][name]) for name in plain[1])


def test_compact_is_algorithm_1(adapter: Any) -> None:
    student, batch = adapter.student().double().train(), batch_of(adapter, 0, 1, 2, 3)
    decision = half(batch)
    assert decision.elides
    compact, oracle = (run(adapter, student, batch, decision, way) for way in ("compact", "layerwise"))
    assert float((compact[0] - oracle[0]).abs().max()) < 1e-9
    assert compact[1].keys() == oracle[1].keys()
    assert max(float((compact[1][name] - oracle[1][name]).abs().max()) for name in oracle[1]) < 1e-8


def test_accumulation_is_one_batch(adapter: Any) -> None:
    student = adapter.student().double().train()
    scored = regate.ScoredLM(student)
    whole = batch_of(adapter, 0, 1, 2, 3)
    loss_of(adapter, scored, whole, dense(whole)).backward()
    wanted = gradients(student)
    student.zero_grad()
    for places in ((0, 1), (2,), (3,)):
        part = batch_of(adapter, *places)
        loss_of(adapter, scored, part, dense(part)).backward()
    summed = gradients(student)
    assert summed.keys() == wanted.keys()
    assert max(float((summed[name] - wanted[name]).abs().max()) for name in wanted) < 1e-9


def test_resumed_training_is_the_same_training(adapter: Any, tmp_path: Path) -> None:
    batches = [adapter.processor().collate(encoded(adapter, [samples(adapter)[place]])) for place in (0, 1, 2)]

    def placed() -> Replicated:
        model = regate.ScoredLM(adapter.student().train())
        return Replicated(Accelerator(cpu=True), model, make_optimizer(model, OptimizerRecipe(lr=1e-2)))

    def train(model: Replicated, steps: range) -> list[float]:
        losses = []
        for step in steps:
            batch = batches[step % 3]
            loss = loss_of(adapter, model.model, batch, dense(batch))  # type: ignore[arg-type]
            model.backward(loss)
            model.update(1e-2, math.inf)
            losses.append(float(loss.detach()))
        return losses

    first = placed()
    train(first, range(3))
    path = checkpoint.save(first, tmp_path, step=3, gate_state={}, identity="a")
    wanted = train(first, range(3, 6))
    second = placed()
    checkpoint.load(second, path, identity="a")
    assert train(second, range(3, 6)) == wanted


def test_positions_of_three_axes_reach_the_decoder_of_qwen(adapter: Any) -> None:
    student, batch = adapter.student().double().eval(), batch_of(adapter, 0, 1)
    seen: list[Any] = []
    student.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    with torch.no_grad():
        student(**batch.model_inputs())
    dims = None if seen[0] is None else seen[0].dim()
    assert (dims == 3) == adapter.recipe.model.family.startswith("qwen")
    assert ("mm_token_type_ids" in batch.inputs) == (dims == 3)


def test_ids_are_those_of_transformers_own_processor(adapter: Any) -> None:
    """Text, expanded media and kinds of position, where pieces of text meet at special tokens or spaces.

    InternVL's official training text numbers the frames of a video in another way than its prompts and transformers.
    """
    processor = adapter.processor()
    official = processor.tiles is not None
    for chosen in samples(adapter)[:3]:
        rendered = processor.chat.prompt(chosen) if official else processor.chat.rendered(chosen)
        (row,) = encoded(adapter, [chosen])
        if official:
            row = processor.encode_prompt(chosen, encoded_frames(adapter, chosen))
        batch = processor.collate([row])
        asked: dict[str, Any] = {}
        for media in chosen.media:
            (frames,) = encoded_frames(adapter, chosen)
            clip = frames.permute(0, 2, 3, 1).numpy()
            if media.kind == "image":
                asked["images"] = [clip[0]]
            else:
                times = processor._times(chosen, processor._facts(media, known=frames))
                asked |= {"videos": [clip], "videos_kwargs": {"do_sample_frames": False, "video_metadata": [times]}}
        own = processor.processor(text=[rendered.text], return_tensors="pt", **asked)
        theirs, ours = own["input_ids"][0], batch.input_ids_BS[0]
        assert processor.tokenizer.decode(theirs) == processor.tokenizer.decode(ours)
        if "mm_token_type_ids" in batch.inputs:
            assert torch.equal(own["mm_token_type_ids"].long(), batch.inputs["mm_token_type_ids"])
        for name, value in own.items():
            if name.startswith("pixel_values"):
                apart = 2.01 / 255 / 0.224 if official else 0.0
                assert batch.inputs[name].dtype == torch.uint8
                assert float((value - batch.model_inputs()[name]).abs().max()) <= apart


def test_pictures_that_are_filled_up_are_normalised_first(adapter: Any) -> None:
    """Of two sizes in a sample, or rows of which one has to be filled up: what fills it is no colour of the table."""
    processor = adapter.processor()
    one, image = samples(adapter)[1], samples(adapter)[1].media[0]
    words = ("user", "<media:0>\n<media:1>\nWhy?"), ("assistant", "so")
    two = sample("two sizes", *words, media=(image, image))
    wide = torch.randint(256, (1, 3, 20, 90), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    (frames,) = encoded_frames(adapter, one)
    rows = [processor.encode(one, [frames]), processor.encode(two, [frames, wide])]
    batch = processor.collate(rows)
    read = batch.model_inputs()["pixel_values"]
    if processor.tiles is not None:
        assert batch.inputs["pixel_values"].dtype == torch.uint8  # tiles are squares of one size
        return
    assert batch.inputs["pixel_values"].dtype == torch.float32
    clips = [clip[0].permute(1, 2, 0).numpy() for clip in (frames, wide)]
    text = (processor.chat.markers["image"] or "") * 2
    own = processor.processor(text=[text], images=clips, return_tensors="pt")["pixel_values"]
    theirs = read[-own.shape[0] :]
    assert torch.equal(theirs[tuple(slice(size) for size in own.shape)], own)


def encoded_frames(adapter: Any, chosen: Any) -> list[torch.Tensor]:
    from harness.data.loading.video import read_frames

    return [read_frames(media, frames=adapter.data.frames) for media in chosen.media]


SPACED = ("smolvlm", "llava_next_video")
"""Families whose template writes a space between what opens an answer and the answer: the model has to write it."""
CONVERSATIONS = {
    "one turn": ("a cat",),
    "three turns": ("it moves left", "right", "no reason"),
    "an empty answer": ("",),
    "an empty answer in between": ("a", "", "b"),
    "an answer that begins with a line break": ("\nleft",),
    "exclamation marks": ("Oh! No! !", "!", "yes!"),
}


@pytest.mark.parametrize(
    ("case", "kind"), [*((case, "image") for case in CONVERSATIONS), ("three turns", "video"), ("three turns", None)]
)
def test_labels_are_the_answers_with_their_end_marker(adapter: Any, case: str, kind: str | None) -> None:
    """By each family's manner of template: a default system turn, media before the text, no opening of an answer."""
    processor = adapter.processor()
    by_kind = {"video": adapter.data.samples[0].media, "image": samples(adapter)[1].media}
    answers = CONVERSATIONS[case]
    asked = [("user", f"Why {place}?") for place in range(len(answers))]
    if kind is not None:
        asked[0] = ("user", "<media:0>\nWhy 0?")
    turns = [turn for pair in zip(asked, (("assistant", a) for a in answers), strict=True) for turn in pair]
    conversation = sample(case, *turns, media=by_kind[kind] if kind else ())
    row = processor.encode(conversation, None)
    text = processor.tokenizer.decode(row.labels_S[row.labels_S != IGNORE], clean_up_tokenization_spaces=False)
    space = " " if adapter.recipe.model.family in SPACED else ""
    assert text == "".join(f"{space}{answer}{processor.chat.end}" for answer in answers)
    assert int((row.kind_S == Kind.PROMPT).sum()) > 0
    assert bool((row.kind_S == Kind.VISUAL).any()) == (kind is not None)


def test_what_stands_for_media_is_asked_once_for_each_size(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the times of the frames stand in the text they count too; a row without frames is that of one with."""
    processor = adapter.processor()
    first, second = (adapter.data.samples[place] for place in (0, 1))
    rows = encoded(adapter, [first, second])
    for row, chosen in zip(rows, (first, second), strict=True):
        assert torch.equal(processor.encode(chosen, None).input_ids_S, row.input_ids_S)
    if adapter.recipe.model.family == "internvl":
        return  # says without transformers' processor what stands for a clip
    timed = ("qwen3_vl", "smolvlm", "video_llama_3")
    assert processor._writes_times() == (adapter.recipe.model.family in timed)
    monkeypatch.setattr(type(processor), "_look", lambda *_: pytest.fail("asked again"))
    processor.encode(first, None)
    processor.encode(second, None)


def test_a_turn_s_media_stand_where_the_template_writes_them(adapter: Any) -> None:
    """A picture behind a video: some templates write the picture first. Pixels and places agree in any case."""
    processor = adapter.processor()
    video, picture = adapter.data.samples[0].media[0], samples(adapter)[1].media[0]
    words = ("user", "<media:0>\nand\n<media:1>\nWhy?")
    mixed = sample("mixed", words, ("assistant", "so"), media=(video, picture))
    if adapter.recipe.model.family == "smolvlm":
        with pytest.raises(DataError, match="pictures and videos, of which SmolVLMProcessor keeps one kind"):
            processor.encode(mixed, None)
        return
    (row,) = encoded(adapter, [mixed])
    model = adapter.student().eval()
    with torch.no_grad():
        model(**processor.collate([row]).model_inputs())  # features and places are as many, or transformers raises


def counted(model: Any, inputs: Any, *, backward: bool) -> float:
    """FLOPs of the vision side as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        features = total(model.base_model.get_image_features(**inputs))
        if backward:
            features.backward()
    return float(counter.get_total_flops())


def test_the_formula_counts_what_the_vision_side_computes(adapter: Any) -> None:
    """Forward to the operation; what activation checkpointing computes again too."""
    model = adapter.student().train()
    config, parts = model.config, parts_of(model)
    white = adapter.processor().white_picture()
    patches, pictures, merged = patches_of(white, config)
    inputs = next(iter(model.base_model._forward_hooks.values())).white
    work = vision_flops(sizes_of(model, parts, config, merged), patches, pictures)
    assert counted(model, inputs, backward=False) == work.forward
    plain = counted(model, inputs, backward=True)
    section = adapter.recipe.model
    # LLaVA-NeXT-Video reads the last layer but one: what is behind has no backward pass.
    part = 1 - 1 / section.tower_layers if section.family == "llava_next_video" else 1.0
    read = VisionFlops(work.entry, part * work.layers, work.projector)
    # Attention's backward pass is more than two forward ones, which shows in small towers.
    backward = read.backward_ratio(tower=True, projector=True) * read.forward
    assert plain == pytest.approx(work.forward + backward, rel=0.05)
    model.activation_checkpointing_enable({"use_reentrant": False})
    recompute_first(model, 0)  # train.recompute speaks of the decoder; the tower's layers are computed again
    again = counted(model, inputs, backward=True) - plain
    # torch ends a second pass where nothing more is needed: mostly before a layer's last matrix.
    last = 4 * (patches + pictures) * section.tower_hidden**2 * section.tower_layers
    assert read.layers - last <= again <= read.layers


def test_the_plan_counts_the_work_of_the_model(adapter: Any) -> None:
    """The vision side's sizes from the recipe alone, and from the model that is there."""
    model, fields = adapter.student(), toy_fields(adapter.recipe.model)
    plain = Plain(fields, fields["text_config"]["hidden_size"])
    family = FAMILIES[fields["model_type"]]
    clip = adapter.processor().blank_clip(adapter.recipe.data.size)
    patches, pictures, merged = patches_of(clip, model.config)
    work = vision_flops(sizes_of(model, parts_of(model), model.config, merged), patches, pictures)
    planned = vision_flops(family.sizes(plain), patches, pictures)
    assert (planned.entry, planned.layers) == (work.entry, work.layers)
    assert planned.projector == pytest.approx(work.projector, rel=1e-12)


def test_the_sizes_of_the_recipe_are_those_of_the_model(adapter: Any) -> None:
    footprint = footprint_of(adapter.recipe)
    counts = {group.name: group.counts() for group in adapter.parameter_groups(adapter.student())}
    sizes = {part.name: part.parameters for part in footprint.parts}
    assert sizes["vision tower"] == counts["tower"]["parameters"]
    assert sizes["projector"] == counts["projector"]["parameters"]
    assert footprint.decoder_parameters == counts["decoder"]["parameters"]
    video = adapter.processor().encode(adapter.data.samples[0], None)
    # The processors of the other two choose the pixels by a budget.
    if adapter.recipe.model.family not in ("qwen3_vl", "video_llama_3"):
        assert footprint.visual_tokens == int((video.kind_S == Kind.VISUAL).sum())
