"""`GatedTrainer`: the same numbers as Trainer's own path, as a loop of one's own, and after a resume.

Legend: N losses of the batch.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

import regate
from regate import ConfigError, DenseGate, GateConfig, LayoutError
from regate.hf import KEY, GatedTrainer, make_gate, with_sample_ids
from regate.wrapping import unwrap
from tests import forked
from tests.regate import tiny
from tests.waiting import refused_port

SPARSE = GateConfig(warmup_steps=1, cycle_steps=3, dense_steps=1, ema_decay=0.5)


class Rows(torch.utils.data.Dataset):
    """24 rows of 10 to 17 tokens; the number of targets differs from row to row."""

    def __len__(self):
        return 24

    def __getitem__(self, place):
        draw = torch.Generator().manual_seed(place)
        length = 10 + place % 8
        ids = torch.randint(3, tiny.VOCAB, (length,), generator=draw).tolist()
        return {"sample_id": place, "input_ids": ids, "labels": [-100] * 4 + ids[4:]}


def pad(examples):
    assert all("sample_id" not in example for example in examples)
    longest = max(len(example["input_ids"]) for example in examples)

    def filled(name, value):
        return torch.tensor([example[name] + [value] * (longest - len(example[name])) for example in examples])

    ids = filled("input_ids", 0)
    return {"input_ids": ids, "labels": filled("labels", -100), "attention_mask": (ids != 0).long()}


COLLATE = with_sample_ids(pad)


def arguments(folder, **settings):
    return TrainingArguments(
        output_dir=str(folder),
        **{
            "per_device_train_batch_size": 3,
            "gradient_accumulation_steps": 2,
            "max_steps": 9,
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "remove_unused_columns": False,
            "seed": 3,
            **settings,
        },
    )


def gate_for(folder, config=SPARSE, model=None):
    teacher = tiny.lm("Qwen2") if model is None else model
    return make_gate(folder, config, teacher=teacher, dataset=Rows(), collator=COLLATE, fingerprint={"t": 1})


def trained(folder, gate, model=None, resume=None, data_collator=COLLATE, rows="padded", **settings):
    trainer = GatedTrainer(
        model=tiny.lm("Qwen2") if model is None else model,
        args=arguments(folder, **settings),
        train_dataset=Rows(),
        data_collator=data_collator,
        gate=gate,
        rows=rows,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_same_weights(one, other, limit=1e-9):
    for (name, ours), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert (ours - theirs).abs().max().item() <= limit, name


def test_dense_gate_trains_as_trainer_does(tmp_path):
    gated = trained(tmp_path / "a", DenseGate(), logging_steps=1)
    plain = Trainer(
        model=tiny.lm("Qwen2"),
        args=arguments(tmp_path / "b", logging_steps=1),
        train_dataset=Rows(),
        data_collator=pad_only,
    )
    plain.train()
    assert_same_weights(gated.model, plain.model, limit=1e-6)  # Trainer's own loss is float32
    ours, theirs = ([entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (gated, plain))
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("init", ["zero", "first_loss", "reference"])
def test_a_run_that_does_not_resume_starts_with_a_fresh_difficulty(tmp_path, init):
    config = replace(SPARSE, ema_init=init)
    first = trained(tmp_path / "a", gate_for(tmp_path / "gate", config))
    ended = np.load(tmp_path / "gate" / "difficulty" / "m.e2.npy")
    again = trained(tmp_path / "a", gate_for(tmp_path / "gate", config))
    assert_same_weights(first.model, again.model, limit=0.0)
    np.testing.assert_array_equal(ended, np.load(tmp_path / "gate" / "difficulty" / "m.e2.npy"))


def test_many_runs_share_the_reference_losses_of_one_pass(tmp_path):
    def gate(run):
        return make_gate(
            config=SPARSE, reference=tmp_path / "reference", run=tmp_path / run, teacher=tiny.lm("Qwen2"),
            dataset=Rows(), collator=COLLATE, fingerprint={"t": 1},
        )  # fmt: skip

    first = trained(tmp_path / "a", gate("one"))
    written = (tmp_path / "reference" / "losses.npy").stat().st_mtime_ns
    second = trained(tmp_path / "b", gate("two"))
    assert (tmp_path / "reference" / "losses.npy").stat().st_mtime_ns == written
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "reference", "one", "two"}
    assert_same_weights(first.model, second.model, limit=0.0)


@pytest.mark.parametrize("places", [{}, {"reference": "r"}, {"run": "r"}, {"folder": "f", "run": "r"}])
def test_a_gate_without_its_folders_is_refused(places):
    with pytest.raises(ConfigError, match="the run's folder, or reference= and run="):
        make_gate(**places, teacher=tiny.lm("Qwen2"), dataset=Rows(), collator=COLLATE, fingerprint={})


def test_other_visual_tokens_are_another_reference_store(tmp_path):
    def gate(ids):
        collator = with_sample_ids(pad, visual_token_ids=ids)
        return make_gate(
            tmp_path, SPARSE, teacher=tiny.lm("Qwen2"), dataset=Rows(), collator=collator, fingerprint={"t": 1}
        )

    gate([])
    with pytest.raises(regate.StoreError, match=r"visual_token_ids \(store \[\], here \[1\]\)"):
        gate([1])


def test_pixels_without_a_visual_position_are_refused_by_name():
    def pictures(examples):
        return {**pad(examples), "pixel_values": torch.zeros(len(examples), 3, 4, 4)}

    examples = [Rows()[place] for place in range(2)]
    examples[0]["input_ids"][1] = 1  # no other token has this id
    with pytest.raises(LayoutError, match=r"the batch has pixel_values, and none of its .* visual_token_ids \[2\]"):
        with_sample_ids(pictures, visual_token_ids=[2])(examples)
    assert KEY in with_sample_ids(pictures, visual_token_ids=[1])(examples)
    no_pixels = with_sample_ids(lambda rows: {**pad(rows), "pixel_values": None})
    assert KEY in no_pixels(examples), "a batch of text alone has none"


def test_cells_are_elided_where_the_collator_says_what_they_show(tmp_path):
    """Four cells a row, of which sparse steps compute two, chosen by what they show; without grids it is refused."""

    class Pictures(Rows):
        def __getitem__(self, place):
            row = super().__getitem__(place)
            return {**row, "input_ids": [row["input_ids"][0], *[1] * 4, *row["input_ids"][5:]],
                    "labels": [-100] * 6 + row["input_ids"][6:]}  # fmt: skip

    def trained_by(collator):
        visual = regate.VisualConfig(0.5, "diverse")
        config = replace(SPARSE, keep_ratio=1.0, selection="random", visual=visual, distil=1.0)
        trainer = GatedTrainer(
            model=tiny.lm("Qwen2"), args=arguments(tmp_path, max_steps=3, logging_steps=3), train_dataset=Pictures(),
            data_collator=collator, gate=regate.Gate(config, None), rows="packed",
        )  # fmt: skip
        trainer.train()
        return next(entry for entry in trainer.state.log_history if "loss" in entry)

    told = with_sample_ids(
        pad, visual_token_ids=[1], grids=lambda batch: ((regate.Grid(1, 2, 2),),) * len(batch["input_ids"])
    )
    log = trained_by(told)
    assert log["regate_positions"] - log["regate_active"] == 2 * 6 * 2  # cells of a row, rows, sparse steps
    assert log["regate_scored"] == log["regate_targets"]
    with pytest.raises(LayoutError, match="needs the grids of the clips"):
        trained_by(with_sample_ids(pad, visual_token_ids=[1]))


def test_a_collator_that_is_not_wrapped_is_told(tmp_path):
    with pytest.raises(regate.RegateError, match="wrap the collator, data_collator=with_sample_ids"):
        make_gate(tmp_path, SPARSE, teacher=None, dataset=Rows(), collator=pad_only, fingerprint={})
    with pytest.raises(regate.RegateError, match="wrap the collator, data_collator=with_sample_ids"):
        trained(tmp_path, DenseGate(), data_collator=pad_only)


def test_the_log_says_what_the_gate_did(tmp_path):
    trainer = trained(tmp_path / "a", gate_for(tmp_path / "gate"), logging_steps=1)
    logs = [entry for entry in trainer.state.log_history if "regate_scored" in entry]
    assert [entry["regate_sparse"] for entry in logs] == [0, 1, 1, 0, 1, 1, 0, 1, 1]  # cycles of 3, 1 of them dense
    for entry in logs:
        sparse = entry["regate_sparse"] == 1
        assert entry["regate_keep_ratio"] == (0.5 if sparse else 1.0)
        assert (entry["regate_scored"] < entry["regate_targets"]) == sparse
        assert (entry["regate_active"] < entry["regate_positions"]) == sparse


def test_a_warm_up_as_long_as_the_run_is_warned_of(tmp_path, recwarn):
    trained(tmp_path / "a", gate_for(tmp_path / "gate", replace(SPARSE, warmup_steps=9)))
    assert any("warm-up (9 steps) covers the whole run (9 steps)" in str(w.message) for w in recwarn)
    recwarn.clear()
    trained(tmp_path / "b", gate_for(tmp_path / "gate-b", SPARSE))
    assert not any("covers the whole run" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize("gated", [False, True])
def test_packed_rows_train_the_same_weights(tmp_path, gated):
    gates = [gate_for(tmp_path / rows) if gated else DenseGate() for rows in ("padded", "packed")]
    padded, packed = (
        trained(tmp_path, gate, rows=rows) for gate, rows in zip(gates, ("padded", "packed"), strict=True)
    )
    assert packed.elide.kernel == "sdpa"
    assert_same_weights(padded.model, packed.model)


def pad_only(examples):
    return pad([{name: example[name] for name in example if name != "sample_id"} for example in examples])


@pytest.mark.parametrize(
    "config",
    [
        SPARSE,
        replace(SPARSE, align="union", combine="convex"),
        replace(SPARSE, candidates="text"),
        replace(SPARSE, distil=0.5),
    ],
)
def test_sparse_training_equals_a_loop_of_ones_own(tmp_path, config):
    seen = []

    def listening(examples):
        seen.append([example["sample_id"] for example in examples])
        return COLLATE(examples)

    trainer = trained(tmp_path / "trainer", gate_for(tmp_path / "a", config), data_collator=listening)
    assert seen[:8] != seen[8:16]  # 8 micro-batches, 4 steps an epoch
    model, gate = tiny.lm("Qwen2"), gate_for(tmp_path / "b", config)
    elide, scored = regate.attach(model), regate.ScoredLM(model)
    for step in range(9):
        gate.start_epoch(step // 4)
        window = [COLLATE([Rows()[place] for place in micro]) for micro in seen[2 * step : 2 * step + 2]]
        decisions = [gate.decide(batch[KEY].layout, batch[KEY].sample_ids_B, step=step) for batch in window]
        total = regate.count_scored(decisions)
        for batch, decision in zip(window, decisions, strict=True):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            elided = gate.elided(decision)
            if elided is not None:
                with torch.no_grad(), elide(elided):
                    elided_MV = scored(predictor_BS=elided.predictor_BS, **inputs)
            with elide(decision):
                logits_NV = scored(predictor_BS=decision.predictor_BS, **inputs)
            loss_N = regate.token_loss(logits_NV, decision.targets_N)
            trained_N = loss_N * gate.weights(decision, loss_N)
            if elided is not None:
                trained_N = trained_N + 0.5 * regate.distil_loss(decision, logits_NV, elided, elided_MV)
            (trained_N.sum() / total).backward()
            gate.observe(decision, loss_N)
        for value in model.parameters():
            value.data.sub_(value.grad, alpha=0.02)
            value.grad = None
    assert_same_weights(trainer.model, model)


@pytest.mark.parametrize("stop", [3, 4])
def test_resume_is_exact_in_an_epoch_and_at_its_border(tmp_path, stop):
    straight = trained(tmp_path / "straight", gate_for(tmp_path / "a"), save_strategy="steps", save_steps=stop)
    first = trained(
        tmp_path / "cut", gate_for(tmp_path / "b"), save_strategy="steps", save_steps=stop, max_steps=stop + 1
    )
    assert first.state.global_step == stop + 1  # one step after the checkpoint is observed, and must be forgotten
    again = trained(
        tmp_path / "cut", gate_for(tmp_path / "b"), resume=str(tmp_path / "cut" / f"checkpoint-{stop}"),
        save_strategy="steps", save_steps=stop,
    )  # fmt: skip
    assert_same_weights(straight.model, again.model)
    ours, theirs = (np.load(tmp_path / name / "difficulty" / "m.e2.npy") for name in ("a", "b"))
    assert ours.any()
    np.testing.assert_array_equal(ours, theirs)


def test_a_used_gate_without_its_checkpoint_is_refused(tmp_path):
    trained(tmp_path / "x", gate_for(tmp_path / "a"), max_steps=2).gate.state_dict()
    gate, named = gate_for(tmp_path / "a"), COLLATE([Rows()[0]])[KEY]  # in a loop of one's own
    decision = gate.decide(named.layout, named.sample_ids_B, step=0)
    with pytest.raises(regate.StoreError, match="load the checkpoint's gate state"):
        gate.observe(decision, torch.ones(decision.counts.scored))
    gate.start_over()  # what GatedTrainer does where it does not resume
    gate.observe(decision, torch.ones(decision.counts.scored))


def test_evaluation_is_trainers_own(tmp_path):
    trainer = GatedTrainer(
        model=tiny.lm("Qwen2"), args=arguments(tmp_path), eval_dataset=Rows(), data_collator=COLLATE, gate=DenseGate()
    )
    plain = Trainer(model=tiny.lm("Qwen2"), args=arguments(tmp_path), eval_dataset=Rows(), data_collator=pad_only)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)


def test_under_lora(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny.lm("Qwen2"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trained(tmp_path, gate_for(tmp_path / "g"), model=model, max_steps=3)
    changed = [name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all("lora_" in name for name in changed)
    assert type(unwrap(model)).__name__ == "Qwen2ForCausalLM"


def test_mistakes_are_named(tmp_path):
    model = tiny.lm("Qwen2")
    with pytest.raises(ConfigError, match="remove_unused_columns"):
        GatedTrainer(model=model, args=arguments(tmp_path, remove_unused_columns=True), gate=DenseGate())
    with pytest.raises(ConfigError, match="label smoothing"):
        GatedTrainer(model=model, args=arguments(tmp_path, label_smoothing_factor=0.1), gate=DenseGate())
    with pytest.raises(LayoutError, match="has no 'sample_id'"):
        COLLATE([{"input_ids": [1], "labels": [1]}])
    with pytest.raises(LayoutError, match="no labels"):
        with_sample_ids(lambda rows: {"input_ids": torch.ones(1, 2)})([{"sample_id": 1}])
    gate_for(tmp_path / "g")
    with pytest.raises(regate.StoreError, match=r"t \(store 1, here 2\)"):
        make_gate(tmp_path / "g", SPARSE, teacher=model, dataset=Rows(), collator=COLLATE, fingerprint={"t": 2})


def test_names_become_stable_ids():
    assert regate.stable_id(12) == 12
    assert regate.stable_id("toy/1") == regate.stable_id("toy/1") != regate.stable_id("toy/2")
    assert 0 <= regate.stable_id("toy/1") < 2**63


def two_processes(rank, world, folder, port):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    settings = {"ddp_backend": "gloo"} if world > 1 else {}
    args = arguments(
        folder, per_device_train_batch_size=6 // world, **settings
    )  # before the gate: it starts the group
    gate = gate_for(f"{folder}/gate-{world}")
    trainer = GatedTrainer(model=tiny.lm("Qwen2"), args=args, train_dataset=Rows(), data_collator=COLLATE, gate=gate)
    trainer.train()
    if rank == 0:
        torch.save(unwrap(trainer.model).state_dict(), f"{folder}/weights-{world}.pt")
        with open(f"{folder}/scale-{world}.json", "w") as file:  # noqa: PTH123
            json.dump([entry for entry in trainer.state.log_history if "train_loss" in entry], file)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    for world in (1, 2):
        held, port = refused_port()
        held.close()
        assert forked.run(two_processes, world, str(tmp_path), port) == [0] * world
    one, two = (torch.load(tmp_path / f"weights-{world}.pt") for world in (1, 2))
    for name in one:
        assert (one[name] - two[name]).norm() <= 1e-6 * one[name].norm(), name
    ours, theirs = (np.load(tmp_path / f"gate-{world}" / "difficulty" / "m.e2.npy") for world in (1, 2))
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)
