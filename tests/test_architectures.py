"""A tiny model of each architecture: trained for two steps, saved, loaded by transformers, with the same logits."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DynamoBackend
from conftest import sentences, write_csv
from datasets import Dataset
from tokenizers.processors import Sequence
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
)

import run_glue_no_trainer as script
from no_trainer.batches import make_collate, tokenize
from no_trainer.glue import Task
from no_trainer.models import reads_padding
from no_trainer.weights import save_files

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BERT_LIKE = SMALL | {"max_position_embeddings": 64}
GPT_LIKE = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
LLAMA_LIKE = BERT_LIKE | {"num_key_value_heads": 2}
BART_LIKE = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2},
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64},
    **{"bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3},
    "id2label": {0: "negative", 1: "positive"},  # it has three of its own
}
T5_LIKE = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
ENDS = {"bos_token_id": 3, "eos_token_id": 3}
ENCODERS = {
    "albert": BERT_LIKE | {"embedding_size": 16},
    "bert": BERT_LIKE,
    "big_bird": BERT_LIKE,
    "camembert": BERT_LIKE,
    "convbert": BERT_LIKE | {"embedding_size": 32},
    "deberta": BERT_LIKE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "deberta-v2": BERT_LIKE
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 32},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64},
    "electra": BERT_LIKE | {"embedding_size": 16},
    "ernie": BERT_LIKE,
    "fnet": SMALL | {"max_position_embeddings": 64},
    "longformer": BERT_LIKE | {"attention_window": [8, 8]},
    "mobilebert": BERT_LIKE | {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32},
    "modernbert": BERT_LIKE | {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "mpnet": BERT_LIKE,
    "nystromformer": BERT_LIKE | {"num_landmarks": 8, "segment_means_seq_len": 8},
    "reformer": {
        **{"hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 16, "feed_forward_size": 64},
        **{"attn_layers": ["local", "lsh"], "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8},
        **{"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "max_position_embeddings": 64},
        **{"is_decoder": False, "num_buckets": 2, "num_hashes": 1, "hash_seed": 0},
    },
    "rembert": BERT_LIKE | {"input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": BERT_LIKE,
    "roformer": BERT_LIKE | {"embedding_size": 32},
    "squeezebert": BERT_LIKE | {"embedding_size": 32},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64},
    "xlm-roberta": BERT_LIKE,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
}
DECODERS = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2} | ENDS,
    "falcon": SMALL | ENDS,
    "gemma": LLAMA_LIKE | {"head_dim": 16} | ENDS,
    "gpt2": GPT_LIKE | ENDS,
    "gpt_neox": BERT_LIKE | ENDS,
    "llama": LLAMA_LIKE | ENDS,
    "mistral": LLAMA_LIKE | {"head_dim": 16} | ENDS,
    "opt": BERT_LIKE | {"ffn_dim": 64, "word_embed_proj_dim": 32} | ENDS,
    "phi": LLAMA_LIKE | ENDS,
    "stablelm": LLAMA_LIKE | ENDS,
}
BOTH = {"bart": BART_LIKE, "mbart": BART_LIKE, "t5": T5_LIKE, "umt5": T5_LIKE}
ARCHITECTURES = ENCODERS | DECODERS | BOTH


def make(kind: str, tiny_model: Path, folder: Path, **changes: object) -> Path:
    """An untrained encoder or decoder with the tiny model's tokenizer, as its kind has it."""
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    if kind in DECODERS:  # no token to pad with, only one that ends a text
        names = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if kind in BOTH:
        names |= {"eos_token": "[SEP]"}
    backend = AutoTokenizer.from_pretrained(tiny_model).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)  # without a maximum
    torch.manual_seed(0)
    pad = {} if kind in DECODERS else {"pad_token_id": 0}
    if kind in ("t5", "umt5"):
        pad |= {"eos_token_id": 3}
    config = AutoConfig.for_model(kind, vocab_size=len(backend.get_vocab()), **ARCHITECTURES[kind] | pad | changes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_architecture_is_trained_saved_and_loaded(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(kind, tiny_model, tmp_path / "model")
    trained = []
    keep = save_files
    monkeypatch.setattr(
        "no_trainer.results.save_files", lambda run, model, *rest: trained.append(model) or keep(run, model, *rest)
    )
    flags = ["--model_name_or_path", model, "--max_train_steps", 2, "--learning_rate", 1e-3, "--logging_steps", 1]
    results = run(*own_files, *flags, "--output_dir", tmp_path / "out")
    assert results["step"] == 2
    before = AutoModelForSequenceClassification.from_pretrained(model).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert any(not torch.equal(before[name], weight) for name, weight in after.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert after.config.pad_token_id == tokenizer.pad_token_id is not None
    assert after.config.id2label == {0: "negative", 1: "positive"}
    texts = [tokenizer(text) for text, _ in sentences(5)]
    batch = DataCollatorWithPadding(tokenizer)(texts)
    with torch.inference_mode():
        ours, theirs = trained[0].eval()(**batch).logits, after(**batch).logits
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("pairs", [False, True], ids=["one text", "a pair"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_answer_does_not_depend_on_what_shares_its_batch(
    tiny_model: Path, tmp_path: Path, kind: str, pairs: bool
) -> None:
    """Alone, beside others, and padded to the full length: the same logits."""
    folder = make(kind, tiny_model, tmp_path / "model")
    columns = ["a", "b"] if pairs else ["a"]
    data = Dataset.from_dict({column: [text for text, _ in sentences(6)] for column in columns})
    task = Task(["accuracy"], columns, ["n", "p"], ["negative", "positive"], max_length=40)
    args = script.parse_args(["--model_name_or_path", str(folder), "--task_name", "rte"])
    model, tokenizer, task = script.load_model(args, task)
    model.eval()
    rows = tokenize({"test": data}, script.make_encode(tokenizer, task), tokenizer, task)["test"]
    rows = list(rows.remove_columns("length"))
    plain = SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO))
    accelerator = SimpleNamespace(mixed_precision="no", state=plain)
    usual = make_collate(tokenizer, accelerator, model, task.max_length if reads_padding(model) else None)
    full = make_collate(tokenizer, accelerator, model, task.max_length)
    with torch.inference_mode():
        alone = torch.cat([model(**usual([row])).logits for row in rows])
        together, padded = model(**usual(rows)).logits, model(**full(rows)).logits
    furthest = max((alone - together).abs().max().item(), (alone - padded).abs().max().item())
    print(f"{kind:14} {'pair' if pairs else 'text'} {furthest:.1e}")
    assert furthest < 1e-5


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_tied_weights_are_kept_with_the_best_model(
    run: Callable, own_files: list, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    flags = [*own_files, "--load_best_model_at_end", "--metric_for_best_model", "loss", "--num_train_epochs", 6]
    flags += ["--model_name_or_path", make(kind, tiny_model, tmp_path / "model"), "--learning_rate", 0.1]
    results = run(*flags, "--output_dir", tmp_path / "out")
    alone = run(*own_files, "--model_name_or_path", tmp_path / "out", "--num_train_epochs", 0)
    assert results["best_epoch"] < 6, "or this shows nothing"
    assert alone["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-5)


def test_empty_texts_of_a_tokenizer_that_adds_no_tokens(run: Callable, tiny_model: Path, tmp_path: Path) -> None:
    model = make("gpt2", tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.backend_tokenizer.post_processor = Sequence([])
    tokenizer.save_pretrained(model)
    assert tokenizer("")["input_ids"] == []
    file = write_csv(tmp_path / "t.csv", ["text", "label"], [("", "ab"[row % 2]) for row in range(17)] + sentences(3))
    file.write_text(file.read_text().replace(",0", ",a").replace(",1", ",b"))
    flags = ["--train_file", file, "--validation_file", file, "--model_name_or_path", model]
    assert math.isfinite(run(*flags, "--num_train_epochs", 1)["eval_loss"])


def test_a_slow_tokenizer(run: Callable, own_files: list, tiny_model: Path, tmp_path: Path) -> None:
    """One that is written in Python: CANINE's, which reads characters."""
    config = AutoConfig.for_model(
        "canine", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    config.max_position_embeddings = 256
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CanineTokenizer"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert not tokenizer.is_fast
    flags = ["--model_name_or_path", tmp_path / "model", "--use_slow_tokenizer", "--max_train_steps", 1]
    assert run(*own_files, *flags)["step"] == 1


def test_sparse_attention_stays_what_it_is(run: Callable, tiny_model: Path, tmp_path: Path) -> None:
    """BigBird's becomes full attention for good at a batch of short texts."""
    sparse = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1, "initializer_range": 0.5}
    model = make("big_bird", tiny_model, tmp_path / "model", **sparse)
    rows = [(" ".join(["good", "bad"][row % 2] for _ in range(3 + row)), "ab"[row % 2]) for row in range(50)]
    flags = ["--validation_file", write_csv(tmp_path / "v.csv", ["text", "label"], rows), "--num_train_epochs", 0]
    flags += ["--train_file", flags[1], "--model_name_or_path", model, "--per_device_eval_batch_size"]
    losses = [run(*flags, size)["eval_loss"] for size in (1, 8, 50)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_three_texts_that_are_cut_keep_their_end(run: Callable, tiny_model: Path, tmp_path: Path, kind: str) -> None:
    """The head of an encoder-decoder reads the last end token, which therefore separates no texts."""
    rows = [["good " * (row % 9), "bad", "fine " * (row % 7), "ab"[row % 2]] for row in range(40)]
    file = write_csv(tmp_path / "t.csv", ["p", "q", "z", "label"], rows)
    flags = ["--train_file", file, "--text_column_names", "p,q,z", "--max_length", 10, "--max_train_steps", 1]
    assert run(*flags, "--model_name_or_path", make(kind, tiny_model, tmp_path / "model"))["step"] == 1


def test_a_head_for_tokens_is_no_head_for_texts(
    run: Callable, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In some architectures its weights have the same names."""
    model = make("modernbert", tiny_model, tmp_path / "model")
    AutoModelForTokenClassification.from_pretrained(model).save_pretrained(model)
    file = write_csv(tmp_path / "t.csv", ["text"], [["good"], ["bad"]])
    flags = ["--model_name_or_path", model, "--num_train_epochs", 0, "--do_predict", "--test_file", file]
    run(*flags, "--output_dir", tmp_path / "out")
    assert "has no trained head: its predictions are random" in capsys.readouterr().out
