"""config.json of transformers and ModelConfig: every key that changes the computation is translated or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from .. import InputError
from ..checkpoints.reader import has_type
from ..config import ModelConfig
from .huggingface_families import FAMILIES, Family
from .source import SpecialIds, canonical

# Keys that no forward pass without dropout reads: provenance, tokens, dropout, training, generation, other tasks.
HARMLESS = set("""
    architectures model_type dtype torch_dtype transformers_version transformers_weights _name_or_path use_cache
    is_llama_config transformers.js_config unsloth_fixed unsloth_version _from_model_config _attn_implementation
    _attn_implementation_autoset _flash_attn_2_enabled n_ctx n_special gradient_checkpointing language
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id tokenizer_class prefix
    initializer_range attn_pdrop resid_pdrop embd_pdrop attention_dropout hidden_dropout classifier_dropout
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    id2label label2id num_labels problem_type task_specific_params finetuning_task _num_labels
    predict_special_tokens output_past
    return_dict output_attentions output_hidden_states output_scores return_dict_in_generate chunk_size_feed_forward
    max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups num_return_sequences
    temperature top_k top_p typical_p diversity_penalty repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens remove_invalid_values
    exponential_decay_length_penalty
""".split())  # fmt: skip
OFF: tuple[Any, ...] = (None, False, "", [], {})
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
# Kinds of frequency scaling, and the values that each has, in the order of ModelConfig.rotary_scaling.
SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def read_config(values: dict[str, Any], path: Path) -> tuple[Family, str, ModelConfig]:
    """Translates a config.json. Returns the family, the name of the class and the shape.

    Raises InputError, with one line, for everything that this project's models do not compute.
    """
    family, architecture = find_family(values, path)
    given = family.defaults | {key: value for key, value in values.items() if key not in HARMLESS}
    settings = dict(family.settings)
    for key, name in family.keys.items():
        if key not in given:
            raise InputError(f"{path}: {key} is missing; download it again")
        settings[name] = setting(given.pop(key), name, f"{path}: {key}", family)
    if family.settings["position"] == "rotary":
        rope = {key: given.pop(key, None) for key in ROPE_KEYS}
        settings["rotary_base"], settings["rotary_scaling"] = read_rope(rope, path)
        settings["bias"] = read_bias(given.pop("attention_bias"), given.pop("mlp_bias"), family, path)
    config = canonical(ModelConfig(**settings))
    if not config.vocab_size:
        raise InputError(f"{path}: vocab_size is 0; download it again")
    if problems := config.validate():
        raise InputError(f"{path}: {problems[0]}")
    if (head_dim := given.pop("head_dim", None)) not in (None, config.head_dim):
        raise InputError(
            f"{path}: head_dim is {short(head_dim)}, and only hidden_size / num_attention_heads = {config.head_dim} is "
            "supported; choose another model"
        )
    window = given.pop("sliding_window", None)
    if window is not None and not (has_type(window, int) and window >= config.context):
        raise unsupported(path, "sliding_window", window, "null")
    for key, value in given.items():  # an unknown key may only say that something is off
        allowed = family.neutral.get(key, OFF)
        if not is_one_of(value, allowed):
            raise unsupported(path, key, value, None if allowed is OFF else json.dumps(allowed[0]))
    return family, architecture, config


def find_family(values: dict[str, Any], path: Path) -> tuple[Family, str]:
    if values.get("auto_map"):
        raise InputError(f"{path}: auto_map names code of the model's own, which is never run; choose another model")
    names = values.get("architectures")
    model_type = values.get("model_type")
    if names is None:
        names = [family.name for family in FAMILIES if family.model_type == model_type]
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    for family in FAMILIES:
        without_head = family.name.replace("LMHeadModel", "Model").replace("ForCausalLM", "Model")
        if name in (family.name, without_head) and model_type in (None, family.model_type):
            return family, name
    known = ", ".join(family.name for family in FAMILIES)
    raise InputError(
        f"{path}: architectures={short(names)} with model_type={short(model_type)} cannot be read; "
        f"choose a model of one of the classes {known}"
    )


def setting(value: Any, name: str, place: str, family: Family) -> Any:
    """Returns the value of the field `name` of ModelConfig, from that of config.json at `place`."""
    if name == "activation":
        if not isinstance(value, str) or value not in family.activations:
            known = ", ".join(family.activations)
            raise InputError(f"{place} is {short(value)}, and {family.name} is read only with {known}")
        return family.activations[value]
    if name == "logit_softcap":
        if value is None:
            return 0.0
        if value == 0:
            raise InputError(f"{place} is 0, which transformers divides by; null means off")
    hint = get_type_hints(ModelConfig)[name]
    if not has_type(value, hint):
        expected = getattr(hint, "__name__", str(hint)).replace("None", "null")
        raise InputError(f"{place} is {short(value)}, not {expected}; download it again")
    return float(value) if hint is float else value


def read_rope(values: dict[str, Any], path: Path) -> tuple[float, list[float] | None]:
    """Returns rotary_base and rotary_scaling from the keys of transformers 4 and 5, which must agree where both are."""
    found = []
    for key in ("rope_scaling", "rope_parameters"):
        if (given := values[key]) in (None, {}):
            continue
        if not isinstance(given, dict):
            raise InputError(f"{path}: {key} is {short(given)}, not an object; download it again")
        rope = dict(given)
        kind, old_kind = rope.pop("rope_type", None), rope.pop("type", None)
        kind = kind or old_kind or "default"
        if not isinstance(kind, str) or kind not in SCALINGS:
            raise unsupported(path, f"{key}.rope_type", kind, " or ".join(SCALINGS))
        base = rope.pop("rope_theta", values["rope_theta"])
        if rope.pop("partial_rotary_factor", 1) != 1:
            raise unsupported(path, f"{key}.partial_rotary_factor", given["partial_rotary_factor"], "1")
        if unknown := sorted(set(rope) - set(SCALINGS[kind])):
            raise unsupported(path, f"{key}.{unknown[0]}", rope[unknown[0]])
        for name in SCALINGS[kind]:
            if not has_type(rope.get(name), float):
                raise InputError(f"{path}: {key}.{name} is {short(rope.get(name))}, not a number; download it again")
        found.append((base, [float(rope[name]) for name in SCALINGS[kind]] or None))
    base, scaling = found[-1] if found else (values["rope_theta"], None)
    base = 10_000.0 if base is None else base
    if not has_type(base, float):
        raise InputError(f"{path}: rope_theta is {short(base)}, not a number; download it again")
    same = all(other == scaling and theirs in (None, base) for theirs, other in found)
    if not same or values["rope_theta"] not in (None, base):
        raise InputError(f"{path}: {' and '.join(ROPE_KEYS)} contradict each other; remove the wrong one")
    return float(base), scaling


def read_bias(attention: Any, mlp: Any, family: Family, path: Path) -> bool:
    allowed = (False,) if "bias" in family.settings else (False, True)
    if attention is not mlp or not any(attention is value for value in allowed):
        known = " or ".join(f"both {json.dumps(value)}" for value in allowed)
        raise InputError(
            f"{path}: attention_bias={short(attention)} with mlp_bias={short(mlp)} is not supported: {family.name} is "
            f"read with {known}; choose another model"
        )
    return attention


def is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """True if the value is allowed, where unlike in Python neither 0 is False nor 1 True."""
    return any(value == one and type(value) is type(one) for one in allowed)


def unsupported(path: Path, key: str, value: Any, expected: str | None = None) -> InputError:
    only = f", only {expected} is" if expected else ""
    return InputError(f"{path}: {key}={short(value)} is not supported{only}; choose another model")


def short(value: Any) -> str:
    return json.dumps(value)[:99]


def find_class(config: ModelConfig) -> tuple[Family, ModelConfig]:
    """Returns the family that computes such a model, and the shape that is read back from its export.

    Raises InputError with the settings that the nearest family would need.
    """
    config = canonical(config)
    best: list[str] = []
    nearest = None
    for family in FAMILIES:
        if not family.export:
            continue
        needs = [
            f"model.{name}={json.dumps(value).strip(chr(34))}"
            for name, value in family.settings.items()
            if getattr(config, name) != value and name not in family.expressible
        ]
        if config.activation not in family.activations.values():
            needs.append(f"model.activation={'|'.join(dict.fromkeys(family.activations.values()))}")
        if not needs:
            return family, replace(config, **family.settings, dropout=0.0)
        if nearest is None or len(needs) < len(best):
            nearest, best = family, needs
    assert nearest is not None
    raise InputError(
        f"no class of transformers computes this model: the nearest, {nearest.name}, needs {' '.join(best)}; "
        "train with these, or with model=portable"
    )


def write_config(family: Family, config: ModelConfig, ids: SpecialIds, *, dropout: float = 0.0) -> dict[str, Any]:
    """Returns the config.json of a model of a shape that find_class returned."""
    values: dict[str, Any] = {"architectures": [family.name], "model_type": family.model_type}
    values |= {"dtype": "float32", "torch_dtype": "float32", "use_cache": True, "initializer_range": 0.02}
    values |= special_ids(ids)
    names = {ours: theirs for theirs, ours in reversed(family.activations.items())}
    for key, name in family.keys.items():
        value = getattr(config, name)
        values[key] = names[value] if name == "activation" else value
    values |= {key: allowed[0] for key, allowed in family.neutral.items()}
    if family.settings["position"] == "learned":
        return values | {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": 0.0}
    kind = next(kind for kind, parts in SCALINGS.items() if len(parts) == len(config.rotary_scaling or ()))
    scaling = dict(zip(SCALINGS[kind], config.rotary_scaling or (), strict=True))
    if kind == "llama3":
        scaling["original_max_position_embeddings"] = round(scaling["original_max_position_embeddings"])
    values |= {
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.ff_width,
        "head_dim": config.head_dim,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": 0.0,
        "rope_theta": config.rotary_base,
        "rope_scaling": {"rope_type": kind, **scaling} if scaling else None,
        "rope_parameters": {"rope_type": kind, "rope_theta": config.rotary_base, **scaling},
    }
    if "final_logit_softcapping" in family.keys:  # which is 15 where it is missing
        values["final_logit_softcapping"] = config.logit_softcap or None
    return values


def special_ids(ids: SpecialIds) -> dict[str, int | None]:
    """Texts of this project's models start with the end token if the tokenizer has no start token."""
    start = ids.end_id if ids.start_id is None else ids.start_id
    return {"bos_token_id": start, "eos_token_id": ids.end_id, "pad_token_id": ids.pad_id}
