"""A tokenizer of single characters and a model folder that the real loaders read, made in milliseconds."""

from __future__ import annotations

import string
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rsd.manifest import write_manifest

# As in the paper's pair: the marks of a turn are special, the marks of reasoning are tokens like any other.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unk|>")
MARKS = ("<think>", "</think>")
CHARACTERS = string.printable


def tiny_tokenizer(*, marks: tuple[str, ...] = MARKS) -> PreTrainedTokenizerFast:
    """One token a printable ASCII character, the special ones and `marks`; anything else is <|unk|>."""
    vocabulary = {text: index for index, text in enumerate([*CHARACTERS, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<|unk|>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<|unk|>",
        clean_up_tokenization_spaces=False,
    )


def tiny_model_folder(
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    weights: bool = True,
    seed: int = 0,
    layers: int = 1,
    width: int = 16,
    head: int = 8,
) -> Path:
    """Writes a random Qwen3, its tokenizer and a manifest into `folder`; without weights, the tokenizer alone."""
    tokenizer = tokenizer or tiny_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    if weights:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=head,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        Qwen3ForCausalLM(config).save_pretrained(folder)
    write_manifest(folder, kind="model", source="path:tiny", revision=None, licence=None, provenance={})
    return folder


def decided_model_folder(folder: Path, *, head: int = 8) -> Path:
    """A random model that is sure of what it writes and ends some of its turns; its files ask for what nobody wants."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    tiny_model_folder(folder, tokenizer=tokenizer, layers=2, width=32, head=head)
    model = AutoModelForCausalLM.from_pretrained(folder)
    # Tied to the embeddings, the output layer would repeat what was read.
    model.config.tie_word_embeddings = False
    torch.manual_seed(0)
    weights = torch.randn_like(model.lm_head.weight) * 0.4
    weights[tokenizer.eos_token_id] *= 2  # greedy, it would hardly ever come
    model.lm_head.weight = torch.nn.Parameter(weights)
    model.generation_config.update(
        do_sample=True, temperature=0.01, top_k=3, repetition_penalty=9.0, eos_token_id=list(range(100))
    )
    model.save_pretrained(folder)
    write_manifest(folder, kind="model", source="path:tiny", revision=None, licence=None, provenance={})
    return folder
