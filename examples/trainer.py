"""A transformers Trainer script with the gate in it. The lines marked `# regate` are all that changed.

python examples/trainer.py --output runs/trainer
"""

from __future__ import annotations

import argparse

import toy
from transformers import TrainingArguments

from regate import GateConfig  # regate
from regate.hf import GatedTrainer, make_gate, with_sample_ids  # regate: in place of transformers.Trainer
from regate.teacher import TextBackbone  # regate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()

    model, dataset = toy.model(), toy.Pictures()
    collator = with_sample_ids(toy.collate, visual_token_ids=[toy.PICTURE])  # regate: around the script's own
    config = GateConfig(warmup_steps=4, cycle_steps=8, dense_steps=2)  # the toy trains 24 steps; else GateConfig()
    gate = make_gate(  # regate
        f"{options.output}/gate",
        config,
        teacher=TextBackbone(model),
        dataset=dataset,
        collator=collator,
        placeholder_id=toy.PAD,
        fingerprint={"teacher": "toy", "data": "pictures", "template": 1},
    )
    arguments = TrainingArguments(
        output_dir=options.output,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        logging_steps=4,
        save_steps=10,
        report_to="none",
        remove_unused_columns=False,  # as any multimodal script has it
    )
    trainer = GatedTrainer(  # regate: in place of Trainer
        model=model, args=arguments, train_dataset=dataset, data_collator=collator, gate=gate
    )
    trainer.train()
    print(f"final loss {trainer.state.log_history[-1]['train_loss']:.4f}")


if __name__ == "__main__":
    main()
