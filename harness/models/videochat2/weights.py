"""VideoChat2 out of its files: a frozen language model, and what the official stages trained beside it.

Stage 3, as it starts: the stage-1 file (the QFormer's text half), the stage-2 file (everything else that is trained
before), the language model, and new adapters. As it ends: one file that holds all but the language model.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, InstructBlipVideoQFormerConfig

from harness.common.errors import EnvironmentProblem, StaleError
from harness.config.weight_files import read_settings
from harness.models.checkpoint_files import check_loaded, fingerprint, read_folder, weight_files
from harness.models.videochat2 import checkpoint_names as names
from harness.models.videochat2.checkpoint_names import Account
from harness.models.videochat2.config import LORA_TARGETS, UMTConfig, VideoChat2Config
from harness.models.videochat2.model import CHECKPOINT, VISION, VideoChat2ForConditionalGeneration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

QFORMER_TOKENS: Final = "[DEC]"
"""What the official code adds to BERT's vocabulary."""
_SIZES: Final = "its tensors are those of another model than model.language_model and model.qformer_tokenizer say"


@dataclass(frozen=True, slots=True)
class Lora:
    """The adapters' settings; their places are `LORA_TARGETS`."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.1


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the files are, and how they are put together. Either stage 1 and 2 are given, or stage 3.

    Attributes:
        language_model: folder of Mistral-7B-Instruct-v0.2 with its tokenizer.
        qformer_tokenizer: folder of bert-base-uncased: its words, and its sizes, which are the QFormer's.
        stage1: the file that holds the QFormer's text half.
        stage2: the file that holds all but the text half.
        stage3: a finished training, the HD one too.
        vision_heads: of the vision transformer, which its tensors do not tell.
        image_size: pixels along a side of its input, likewise.
        checkpoint_blocks: see `UMTConfig`.
    """

    language_model: Path
    qformer_tokenizer: Path
    stage1: Path | None = None
    stage2: Path | None = None
    stage3: Path | None = None
    lora: Lora = Lora()
    bos_as_ones: bool = True
    vision_heads: int = 16
    image_size: int = 224
    checkpoint_blocks: int = 0

    def stages(self) -> list[Path]:
        """The official files, the first to be read first."""
        return [path for path in (self.stage1, self.stage2, self.stage3) if path is not None]

    def weights(self) -> list[Path]:
        """Every file of weights, in a fixed order."""
        return [*weight_files(self.language_model), *self.stages()]


def qformer_tokenizer(folder: Path) -> Any:
    """BERT's tokenizer as the official code uses it: one word more, padded and cut on the left.

    Raises:
        EnvironmentProblem: the folder holds no tokenizer.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(f"{folder}: no tokenizer can be read: {error}") from None
    tokenizer.add_special_tokens({"bos_token": QFORMER_TOKENS})
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    return tokenizer


def read_stages(files: ModelFiles) -> tuple[dict[str, Tensor], list[Account]]:
    """The official tensors that the model is made from, and what became of each file's.

    Raises:
        EnvironmentProblem: a file cannot be read, is another stage's, or lacks something.
    """
    tensors = {path: names.read_tensors(path) for path in files.stages()}
    if files.stage3 is not None:
        state = _only(tensors[files.stage3])
        if not any(names.LORA in name for name in state):
            raise EnvironmentProblem(
                f"{files.stage3}: holds no adapters, so it is no stage-3 file",
                hint="a stage-2 file is named by model.stage2, with model.stage1",
            )
        return state, [_account(files.stage3, tensors[files.stage3], state, {})]
    if files.stage2 is None:
        raise EnvironmentProblem("neither a stage-2 nor a stage-3 file is given")
    later = _only(tensors[files.stage2])
    if any(names.LORA in name for name in later):
        raise EnvironmentProblem(
            f"{files.stage2}: holds adapters, so it is a stage-3 file", hint="name it as model.stage3 instead"
        )
    earlier = {} if files.stage1 is None else _only(tensors[files.stage1])
    state = {**earlier, **later}
    if not any(names.TEXT_HALF.match(name) for name in state):
        where = files.stage2 if files.stage1 is None else f"{files.stage1} and {files.stage2}"
        raise EnvironmentProblem(
            f"{where}: the half of the QFormer that reads the instruction is missing",
            hint="stage 2 leaves it out; umt_l16_qformer.pth of stage 1 holds it: name that file as model.stage1",
        )
    kept = {name: value for name, value in earlier.items() if name not in later}
    accounts = [] if files.stage1 is None else [_account(files.stage1, tensors[files.stage1], kept, later)]
    return state, [*accounts, _account(files.stage2, tensors[files.stage2], later, {})]


def _only(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What belongs to this model, without the frozen base, heads of stage 1 and the buffer that counts positions."""
    return {
        name: value
        for name, value in tensors.items()
        if names.our_name(name) != name
        and name != names.POSITION_IDS
        and (not name.startswith(names.BASE) or names.LORA in name)
    }


def _account(
    path: Path, tensors: Mapping[str, Tensor], used: Mapping[str, Tensor], later: Mapping[str, Tensor]
) -> Account:
    rest = tuple(name for name in tensors if name not in used and name not in later)
    return Account(path, len(used), len(tensors) - len(used) - len(rest), rest)


def config_of(files: ModelFiles, state: Mapping[str, Tensor] | None = None) -> VideoChat2Config:
    """The configuration that the files make: the language model's and BERT's own, and sizes read off the tensors.

    Raises:
        EnvironmentProblem: a folder holds no configuration, or the language model is another one.
    """
    if state is None:
        state, _ = read_stages(files)
    text = _text_config(files.language_model)
    bert = read_settings(files.qformer_tokenizer / "config.json")
    patch = _get(state, "vision_encoder.encoder.patch_embed.proj.weight", files)
    own = {key: value for key, value in bert.items() if key in InstructBlipVideoQFormerConfig().to_dict()}
    qformer = {
        **own,
        "model_type": InstructBlipVideoQFormerConfig.model_type,
        "vocab_size": len(qformer_tokenizer(files.qformer_tokenizer)),
        "encoder_hidden_size": patch.shape[0],
    }
    blocks = {int(name.split(".")[3]) for name in state if name.startswith("vision_encoder.encoder.blocks.")}
    first = _get(state, "vision_encoder.encoder.blocks.0.mlp.fc1.weight", files)
    vision = UMTConfig(
        hidden_size=patch.shape[0],
        intermediate_size=first.shape[0],
        num_hidden_layers=len(blocks),
        num_attention_heads=files.vision_heads,
        image_size=files.image_size,
        patch_size=patch.shape[-1],
        checkpoint_blocks=files.checkpoint_blocks,
    )
    if vision.hidden_size % vision.num_attention_heads:
        raise EnvironmentProblem(
            f"{files.stages()[-1]}: {vision.hidden_size} channels are not {vision.num_attention_heads} heads"
        )
    return VideoChat2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=_get(state, "query_tokens", files).shape[1],
        num_extra_query_tokens=_get(state, "extra_query_tokens", files).shape[1],
        placeholder_token_id=text.vocab_size,
        bos_as_ones=files.bos_as_ones,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def _text_config(folder: Path) -> Any:
    """The language model's own; that of Mistral-7B-v0.1, which has the same sizes, is refused."""
    try:
        text: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(f"{folder}: no configuration can be read: {error}") from None
    theta = (getattr(text, "rope_parameters", None) or {}).get("rope_theta")
    window = getattr(text, "sliding_window", None)
    if text.model_type != "mistral" or theta != 1e6 or window is not None:
        raise EnvironmentProblem(
            f"{folder}: a {text.model_type} with rope_theta {theta} and a sliding window of {window}; VideoChat2 and "
            "its adapters belong to Mistral-7B-Instruct-v0.2 (1000000.0 and None)"
        )
    return text


def _get(state: Mapping[str, Tensor], name: str, files: ModelFiles) -> Tensor:
    if name not in state:
        where = " and ".join(map(str, files.stages()))
        raise EnvironmentProblem(f"{where}: {name} is missing", hint="is it the file of another model or stage?")
    return state[name]


def build(files: ModelFiles, *, base_dtype: torch.dtype = torch.float32, seed: int = 0) -> PeftModel:
    """The model of the files, with adapters: those of stage 3, or new ones.

    Args:
        base_dtype: of the frozen language model. What is trained is float32.
        seed: of new adapters.

    Raises:
        EnvironmentProblem: a file cannot be read, or its tensors are not those of the configuration.
    """
    state, _ = read_stages(files)
    config = config_of(files, state)
    return _adapted(config, state, files, base_dtype, seed)


def _adapted(
    config: VideoChat2Config, state: dict[str, Tensor], files: ModelFiles, base_dtype: torch.dtype, seed: int
) -> PeftModel:
    where = files.stages()[-1]
    vision = {names.our_name(name): value for name, value in state.items() if names.LORA not in name}
    model = _whole(config, vision, files.language_model, where, base_dtype)
    config = model.config
    config.lora = asdict(files.lora)
    config.language_model = files.language_model.name
    config.language_model_fingerprint = fingerprint(weight_files(files.language_model))
    adapted = add_adapters(model, files.lora, seed=seed)
    adapters = {names.our_name(name): value for name, value in state.items() if names.LORA in name}
    if adapters:
        _load_adapters(adapted, adapters, where)
    return adapted


def _whole(
    config: VideoChat2Config, vision: Mapping[str, Tensor], base: Path, where: Path, base_dtype: torch.dtype
) -> VideoChat2ForConditionalGeneration:
    """The model without adapters; the vision side in float32, whatever the base is in."""
    shapes = _shapes(config)
    checked = {name: value for name, value in vision.items() if name in shapes}
    names.check_shapes(where, checked, shapes, _SIZES)
    state = dict(vision)
    for name, value in read_folder(base).items():
        if ".rotary_emb." not in name:
            state["model.language_model." + name.removeprefix("model.") if name.startswith("model.") else name] = (
                value
            )
    model, loading = VideoChat2ForConditionalGeneration.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=base_dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    check_loaded(f"{where} with {base}", loading, _SIZES)
    if base_dtype != torch.float32:
        own = dict(model.named_parameters())
        for name, value in vision.items():
            own[name].data = value.float().clone()
    return model  # type: ignore[no-any-return]


def _shapes(config: VideoChat2Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = VideoChat2ForConditionalGeneration(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def add_adapters(model: VideoChat2ForConditionalGeneration, lora: Lora, *, seed: int = 0) -> PeftModel:
    """Adapters in the language model and its head. They and the vision side are trained, the rest is frozen.

    Adapters start as peft makes them (nothing is added until the first step); torch's random state stays as it was.
    """
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(LORA_TARGETS)
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft asks for it
        torch.manual_seed(seed)
        adapted: PeftModel = get_peft_model(model, settings)
    for name in VISION:
        getattr(model.model, name).requires_grad_(True)  # peft froze them; they are trained whole
    return adapted


def _load_adapters(adapted: PeftModel, adapters: dict[str, Tensor], where: Path) -> None:
    inner: Any = adapted.get_base_model()
    own = {name: value for name, value in inner.state_dict().items() if names.LORA in name}
    lacking, foreign = sorted(own.keys() - adapters.keys()), sorted(adapters.keys() - own.keys())
    if lacking or foreign:
        raise EnvironmentProblem(
            f"{where}: its adapters are not those of this language model: {len(lacking)} missing "
            f"({names.some(lacking)}), {len(foreign)} unknown ({names.some(foreign)})",
            hint=_SIZES,
        )
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    names.check_shapes(where, adapters, shapes, "is model.lora.rank that of the file, and the language model too?")
    inner.load_state_dict({name: value.float() for name, value in adapters.items()}, strict=False)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What the official stage-3 training saves, by its names: all but the frozen language model.

    Args:
        model: with adapters.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    state = {}
    for name, value in inner.state_dict().items():
        official = names.official_name(name)
        if not official.startswith(names.BASE) or names.LORA in official:
            state[official] = value.detach().cpu().contiguous()
    if not any(names.LORA in name for name in state):
        raise ValueError("the model has no adapters, or they were merged: the stage-3 layout cannot hold it")
    state[names.POSITION_IDS] = torch.arange(inner.config.qformer_config.max_position_embeddings)[None]
    return state


def save_stage3(model: nn.Module, path: Path) -> None:
    """An official stage-3 file, which the official code loads: .pth with the tensors below "model", or
    safetensors."""
    state = trained_state(model)
    if path.suffix == ".safetensors":
        save_file(state, path, metadata={"format": "pt"})
    else:
        torch.save({"model": state}, path)


def save_checkpoint(model: PeftModel, folder: Path) -> None:
    """config.json, which names the frozen base and tells it by its fingerprint, and what was trained."""
    save_stage3(model, folder / CHECKPOINT)
    inner: Any = model.get_base_model()
    inner.config.save_pretrained(folder)


def load_checkpoint(
    folder: Path, language_model: Path, *, merged: bool = False, base_dtype: torch.dtype = torch.float32
) -> nn.Module:
    """What `save_checkpoint` wrote, on its base.

    Args:
        merged: fold the adapters into the base's weights: fewer products, rounded once more in `base_dtype`.

    Raises:
        EnvironmentProblem: files are missing or damaged.
        StaleError: the adapters were trained on another language model.
    """
    config = VideoChat2Config.from_pretrained(folder)
    base = fingerprint(weight_files(language_model))
    if config.lora is None or base != config.language_model_fingerprint:
        raise StaleError(
            f"{folder}: its adapters were trained on {config.language_model}, whose weights are not those of "
            f"{language_model}",
            hint="adapters on another base write nonsense",
        )
    files = ModelFiles(language_model, folder, stage3=folder / CHECKPOINT, lora=Lora(**config.lora))
    state, _ = read_stages(files)
    model = _adapted(config, state, files, base_dtype, seed=0)
    return merge_adapters(model) if merged else model


def load_pretrained(folder: Path, language_model: Path | None = None) -> VideoChat2ForConditionalGeneration:
    """The plain model of a folder: a whole one, or one with adapters, which are folded into their base.

    Args:
        language_model: folder of the frozen base, for a folder that holds adapters.

    Raises:
        EnvironmentProblem: files are missing or damaged, or the base is not given.
        StaleError: the adapters belong to another base.
    """
    if language_model is not None and (folder / CHECKPOINT).is_file():
        merged: VideoChat2ForConditionalGeneration = load_checkpoint(folder, language_model, merged=True)  # type: ignore[assignment]
        return merged
    whole: VideoChat2ForConditionalGeneration = VideoChat2ForConditionalGeneration.from_pretrained(folder)
    return whole


def merge_adapters(model: PeftModel) -> VideoChat2ForConditionalGeneration:
    """The plain model whose language model has taken in the adapters."""
    plain: VideoChat2ForConditionalGeneration = model.merge_and_unload()
    plain.config.lora = None
    return plain
