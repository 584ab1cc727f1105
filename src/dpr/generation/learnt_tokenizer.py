"""A tokenizer learnt from texts, for a model that is trained from random weights."""

from collections.abc import Iterable

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast


def learn_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a unigram tokenizer that lower-cases texts and has T5's special tokens.

    Args:
        texts: The texts to learn from.
        vocab_size: Most tokens in the vocabulary, special ones included.

    Source: Kudo 2018, Subword regularization.
    """
    learnt = Tokenizer(models.Unigram())
    one_space = normalizers.Replace(Regex(r"\s+"), " ")
    learnt.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), one_space, normalizers.Strip()]
    )
    learnt.pre_tokenizer, learnt.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    learnt.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=vocab_size, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    learnt.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": special[0], "eos_token": special[1], "unk_token": special[2]}
    return PreTrainedTokenizerFast(tokenizer_object=learnt, **names)
