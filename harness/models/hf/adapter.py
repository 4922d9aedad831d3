"""Any multimodal model of transformers implements `models.adapter.Adapter`; toy ones of seven families too."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from harness.common.errors import DataError, EnvironmentProblem
from harness.common.hashing import digest
from harness.config.model import HFModel, HFSettings, TinyHFModel
from harness.data.conversion import RefusedSamples, reason
from harness.models.adapter import ParameterGroup
from harness.models.device import compute_dtype
from harness.models.flops import decoder_shape
from harness.models.hf import toy, weights
from harness.models.hf.chat import Chat
from harness.models.hf.config import check_tied, check_typed, is_internvl, read_config, visual_ids
from harness.models.hf.flops import patches_of, sizes_of
from harness.models.hf.internvl.chat import InternVLChat
from harness.models.hf.internvl.drop_path import add_drop_path
from harness.models.hf.internvl.image_processing import Tiles, tiles_of
from harness.models.hf.model import PARTS, TextDecoder, decayed_names, parts_of, prepare_training
from harness.models.hf.processor import HFConversations
from harness.models.hf.sizes import vision_flops
from harness.models.hf.weights import ModelFiles, load_model, load_processor
from harness.models.pretrained import PretrainedAdapter, first_few

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.loading.frames import FrameRule
    from harness.data.sources import DataSet
    from harness.models.adapter import DecoderShape


class HFAdapter(PretrainedAdapter[ModelFiles]):
    """A checkpoint of transformers, of the user or fetched by its commit, or made at toy size."""

    toy = toy.TOY

    def __init__(self, recipe: Recipe, data: DataSet | None) -> None:
        super().__init__(recipe, data)
        self.frame_rule = self._frame_rule()

    def _frame_rule(self) -> FrameRule:
        """InternVL's own evaluations choose the frames as that of MVBench does."""
        model = self.recipe.model
        toy_internvl = isinstance(model, TinyHFModel) and model.family == "internvl"
        return "mvbench" if toy_internvl or is_internvl(self.files.folder) else "spread"

    @property
    def tells_grids(self) -> bool:
        return self.processor().tells_grids

    def locate(self) -> ModelFiles:
        model = self.recipe.model
        if isinstance(model, TinyHFModel):
            return ModelFiles(toy.TOY.folder(self.recipe).folder(toy.CHECKPOINT))
        assert isinstance(model, HFModel)
        if model.revision is None:
            return ModelFiles(Path(self.recipe.paths.weights) / model.checkpoint)
        folder = weights.fetched(model.checkpoint, model.revision, network=False)
        absent = Path(self.recipe.paths.weights) / model.checkpoint
        return ModelFiles(folder or absent, model.checkpoint, model.revision)

    def missing(self) -> list[str]:
        repository, revision = self.files.repository, self.files.revision
        if repository is not None and not self.files.folder.is_dir():
            return [f"{repository} at {revision}: fetched by `harness prepare`"]
        return super().missing()

    def prepare(self, progress: Progress) -> None:
        repository, revision = self.files.repository, self.files.revision
        if repository is not None and revision is not None and self.missing():
            progress.say(f"fetching {repository} at {revision}")
            weights.fetched(repository, revision, network=True)
            self.files = self.locate()
            self.frame_rule = self._frame_rule()
        super().prepare(progress)

    def announce_conversations(self, data: DataSet, progress: Progress) -> None:
        """Conversations whose visual positions make them longer than the limit: `check_lengths` counts words.

        Raises:
            RefusedSamples: media that cannot be used, or that leave no room for an answer; each sample is named.
        """
        processor = self.processor()
        cut: list[str] = []
        refused: list[tuple[str, str]] = []
        for sample in data.samples:
            try:
                if sample.media and processor.encode(sample, None).cut is not None:
                    cut.append(sample.key)
            except DataError as error:
                refused.append((sample.key, reason(sample.key, error)))
        if refused:
            raise RefusedSamples(tuple(refused), len(data.samples))
        if cut:
            progress.say(
                f"{len(cut)} of {len(data.samples)} samples with media lose answers beyond model.max_length "
                f"{processor.max_length}: {first_few(cut)}"
            )

    @property
    def teacher_fingerprint(self) -> str:
        if self._other_teacher():
            return super().teacher_fingerprint
        return digest({"text of": self.weights_fingerprint})

    def processor(self) -> HFConversations:
        self.require()
        folder, model = self.files.folder, self.recipe.model
        processor = load_processor(folder)
        config = read_config(folder)
        check_typed(config, processor, str(folder))
        _settle(processor)
        published = model if isinstance(model, HFModel) else None
        tiles = self._tiles(processor, config)
        return HFConversations(
            processor,
            self._chat(processor) if tiles is None else _internvl_chat(processor),
            self.recipe.data.frames,
            visual_ids(config, processor, str(folder)),
            self._settings().max_length,
            image_settings=_budget(None if published is None else published.image_pixels),
            video_settings=_budget(None if published is None else published.video_pixels),
            tiles=tiles,
        )

    def _chat(self, processor: Any) -> Chat:
        """The checkpoint's own template."""

        def render(messages: Sequence[dict[str, Any]], opened: bool) -> str:
            text: str = processor.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=opened,
            )
            return text

        return Chat(
            render,
            processor.tokenizer.all_special_tokens + list(processor.tokenizer.get_added_vocab()),
            processor.tokenizer.eos_token,
            getattr(processor, "image_token", None),
            getattr(processor, "video_token", None),
            str(self.files.folder),
        )

    def _tiles(self, processor: Any, config: Any) -> Tiles | None:
        """InternVL's way with pictures; None for another family.

        Raises:
            EnvironmentProblem: the recipe asks another family for it.
        """
        model = self.recipe.model
        pixels, most = (model.pixels, model.max_tiles) if isinstance(model, HFModel) else (None, None)
        if config.model_type == "internvl":
            through, where = pixels == "transformers", str(self.files.folder)
            return tiles_of(processor, config.image_seq_length, where, through=through, most=most)
        if getattr(self.recipe.data, "frame_sampling", None) == "random":
            raise EnvironmentProblem(
                "data.frame_sampling random draws other frames in each epoch, and the times of the frames stand in "
                f"the text of {config.model_type}",
                hint="leave it out",
            )
        if pixels == "official" or most is not None or getattr(model, "drop_path", None) is not None:
            raise EnvironmentProblem(
                f"{self.files.folder}: model.pixels official, model.max_tiles and model.drop_path are for InternVL, "
                f"and this is a {config.model_type}",
                hint="leave them out",
            )
        return None

    def student(self) -> nn.Module:
        """The checkpoint, its parts trained or frozen as the recipe says. With LoRA the frozen weights are in the
        type that the recipe computes in."""
        self.require()
        settings = self._settings()
        base = compute_dtype(self.recipe.train.precision) if settings.lora is not None else torch.float32
        model = load_model(self.files.folder, base)
        check_tied(self.files.folder, model.config, _shares_head(model))
        white = self.processor().white_picture()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            prepare_training(model, settings, _taken(model, white))
        if isinstance(settings, HFModel) and settings.drop_path is not None:
            add_drop_path(model.get_encoder(modality="image"), settings.drop_path)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        trained: nn.Module = model
        return trained

    def outline(self) -> nn.Module:
        with torch.device("meta"):
            model: nn.Module = transformers.AutoModelForImageTextToText.from_config(
                read_config(self.files.folder), trust_remote_code=False
            )
        return model

    def parameter_groups(self, student: nn.Module) -> Sequence[ParameterGroup]:
        """Tower, projector and decoder, each with its learning rate; weight decay as in transformers' Trainer."""
        parts, settings, decayed = parts_of(student), self._settings(), decayed_names(student)
        return [ParameterGroup(part, parts.of(part), getattr(settings, part).lr, decayed) for part in PARTS]

    def teacher(self) -> nn.Module:
        """The model's own decoder without pictures, or the language model that the recipe names."""
        if self._other_teacher():
            return super().teacher()
        self.require()
        gate = self.recipe.gate
        half = gate is not None and gate.reference.dtype == "bfloat16" and torch.cuda.is_available()
        model = load_model(self.files.folder, torch.bfloat16 if half else torch.float32)
        return TextDecoder(model).eval().requires_grad_(False)

    def shape(self) -> DecoderShape:
        """A clip of the recipe's frames is counted for every sample; a picture costs less."""
        settings, config = self._settings(), read_config(self.files.folder)
        model: Any = self.outline()
        parts = parts_of(model)
        processor = self.processor()
        size = getattr(self.recipe.data, "size", 448)
        patches, pictures, merged = patches_of(processor.blank_clip(size), config)
        vision = vision_flops(sizes_of(model, parts, config, merged), patches, pictures)
        trains_linear = settings.decoder.train and settings.lora is None
        return decoder_shape(
            config.get_text_config(),
            trainable_linear=float(trains_linear),
            adapter_parameters=_lora_parameters(model, settings),
            vision_flops=vision.forward,
            vision_backward=vision.backward_ratio(
                tower=settings.tower.train,
                projector=settings.projector.train,
                checkpointing=self.recipe.train.gradient_checkpointing,
            ),
        )

    def save(self, model: nn.Module, directory: Path) -> None:
        """A checkpoint that `from_pretrained` reads; with LoRA, the trained tensors alone."""
        if self._settings().lora is None:
            model.save_pretrained(directory)  # type: ignore[operator]
        else:
            weights.save_trained(model, directory, weights=self.weights_fingerprint)
        self.processor().save(directory)

    def load(self, directory: Path) -> nn.Module:
        """A checkpoint that `save` wrote, or a published one.

        Raises:
            StaleError: a checkpoint with LoRA belongs to other weights.
        """
        if (directory / weights.TRAINED).is_file():
            student = self.student()
            weights.load_trained(student, directory, weights=self.weights_fingerprint)
            return student
        model: nn.Module = load_model(directory, torch.float32)
        return model

    def _settings(self) -> HFSettings:
        assert isinstance(self.recipe.model, HFSettings)
        return self.recipe.model

    def _other_teacher(self) -> bool:
        gate = self.recipe.gate
        return gate is not None and gate.reference.model is not None


def _settle(processor: Any) -> None:
    """What the reference processing does where transformers is about to change its own.

    Frames have the pixel limit that the models were trained with. Video tokens are not dropped by what the frames
    show: the reference losses are computed without frames, so a row's length must not depend on them.
    """
    video = getattr(processor, "video_processor", None)
    if video is None:
        return
    if getattr(video, "cap_pixels_per_frame", False) is None:
        video.cap_pixels_per_frame = True
    if getattr(video, "use_token_compression", False):
        video.use_token_compression = False


def _internvl_chat(processor: Any) -> InternVLChat:
    return InternVLChat(processor.tokenizer, processor.image_token, processor.video_token)


def _budget(bounds: tuple[int, int] | None) -> dict[str, Any]:
    return {} if bounds is None else {"size": {"shortest_edge": bounds[0], "longest_edge": bounds[1]}}


def _taken(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those that `get_image_features` takes."""
    names = inspect.signature(model.base_model.get_image_features).parameters
    return {name: value for name, value in inputs.items() if name in names}


def _shares_head(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _lora_parameters(model: Any, settings: HFSettings) -> int:
    if settings.lora is None:
        return 0
    linear = [module for module in model.get_decoder().modules() if isinstance(module, torch.nn.Linear)]
    return sum(settings.lora.rank * (module.in_features + module.out_features) for module in linear)


