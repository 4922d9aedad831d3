"""`model.decoder`: a causal LM that is given is backbone and teacher; here a random one of SmolLM2's class."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.common.errors import EnvironmentProblem, RecipeError
from harness.common.progress import Progress
from harness.config.load import load_recipe
from harness.config.recipe import Recipe
from harness.data.loading.video import read_frames
from harness.data.sample import Sample, Turn
from harness.evaluation.lmms.scorer import Request, Scorer, chunked
from harness.evaluation.multiple_choice import prompt
from harness.models import MODELS, adapter_for
from harness.pipeline import prepare, train
from harness.plan import make_plan
from harness.records.ledger import read_steps
from tests.harness.worlds.tiny import tiny_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.sample import Media
    from harness.training.run import Prepared


def write_decoder(folder: Path, *, tied: bool = True) -> None:
    """A Llama of two layers with grouped keys, and a byte-level BPE of a few merges."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = ["it can be seen that the red triangle moves to the left, and the blue circle is still"] * 4
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(words, trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=bpe.get_vocab_size(), hidden_size=24, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def recipe_in(folder: Path) -> Recipe:
    content = json.loads(tiny_recipe(folder, decoder="given").model_dump_json())
    for key in ("hidden", "layers", "heads", "text"):
        del content["model"][key]
    content["gate"] = {"warmup_steps": 1, "cycle_steps": 2, "dense_steps": 0, "deep": 0.5}
    return Recipe.model_validate_json(json.dumps(content))


def test_a_given_decoder_is_trained_and_judges(tmp_path: Path) -> None:
    """The path of the recipes smollm2_*: prepare, the teacher's pass, two steps, a checkpoint that loads."""
    recipe = recipe_in(tmp_path)
    (line, *_) = make_plan(recipe).missing_weights
    assert "docs/your_model.md" in line
    with pytest.raises(EnvironmentProblem, match="weights are missing"):
        prepare(recipe, Progress(quiet=True))
    given = tmp_path / "weights" / "given"
    write_decoder(given)
    run = prepare(recipe, Progress(quiet=True))
    teacher = run.adapter.teacher()
    before = LlamaForCausalLM.from_pretrained(given)
    known = before.config.vocab_size
    for name, weight in before.model.state_dict().items():
        torch.testing.assert_close(teacher.model.state_dict()[name][: len(weight)], weight, rtol=0, atol=0)
    assert teacher.config.vocab_size == known + 7 == run.adapter.processor().vocabulary
    student: Any = run.adapter.student()
    assert student.lm_head.weight is student.model.language_model.embed_tokens.weight
    footprint = MODELS["tiny"].footprint(recipe)
    assert (footprint.decoder.layers, footprint.decoder.vocabulary) == (2, known + 7)
    assert footprint.parameters == sum(parameter.numel() for parameter in student.parameters())
    train(run)
    steps = list(read_steps(run.run_dir / "ledger.jsonl"))
    assert [step["keep_ratio"] for step in steps] == [1.0, 0.5]
    assert steps[1]["flops"] < steps[1]["flops_dense"]
    run.adapter.save(student, tmp_path / "kept")
    kept: Any = adapter_for(recipe, None).load(tmp_path / "kept")
    assert kept.config.text_config.model_type == "llama"
    assert all(torch.equal(weight, kept.state_dict()[name]) for name, weight in student.state_dict().items())
    options_of_an_item_are_scored(run, kept)


def options_of_an_item_are_scored(run: Prepared, kept: Any) -> None:
    """The losses of an evaluation's options are those of a plain forward pass over each."""
    question = run.data.questions[0]

    def frames(media: Media) -> torch.Tensor:
        return read_frames(media, frames=run.data.frames)

    request = Request(question.key, question.media, prompt("options", question), question.options)
    scorer = Scorer(adapter_for(run.recipe, None), kept, frames)
    (losses,) = [by_item[0] for by_item in scorer.option_losses(chunked([request], 8))]
    assert len(losses) == len(question.options)
    for option, scored in zip(question.options, losses, strict=True):
        turns = (Turn("user", request.prompt), Turn("assistant", option))
        sample = Sample(1, question.key, question.media, turns)
        row = run.adapter.processor().encode(sample, [frames(question.media[0])])
        batch = run.adapter.processor().collate([row])
        with torch.no_grad():
            log_p_SV = kept(**batch.model_inputs()).logits[0].double().log_softmax(-1)
        places = batch.layout.target_BS[0].nonzero().squeeze(1)
        plain = -float(log_p_SV[places - 1, batch.input_ids_BS[0, places]].sum())
        assert scored.tokens == len(places)
        assert scored.loss == pytest.approx(plain, rel=1e-5)


def test_a_decoder_with_a_head_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    write_decoder(tmp_path / "weights" / "given", tied=False)
    with pytest.raises(RecipeError, match="its head is not its embeddings"):
        prepare(recipe_in(tmp_path), Progress(quiet=True))


def test_sizes_of_a_decoder_that_is_given_are_not_asked() -> None:
    with pytest.raises(RecipeError, match=r"model\.layers is that of model.decoder"):
        load_recipe("smollm2_regate", ["model.layers=3"])


def test_the_published_sizes_are_those_of_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("smollm2_deep", [f"paths.weights={tmp_path}"])
    footprint = MODELS["tiny"].footprint(recipe)
    assert footprint.decoder_parameters == pytest.approx(134.5e6, rel=1e-3)
