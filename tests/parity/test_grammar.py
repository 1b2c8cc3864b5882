"""The grammar over Gemma's own vocabulary, where ` ;` is one token and labels split otherwise."""

from __future__ import annotations

import pytest
from tests.parity.test_processor import gemma_tokenizer as gemma_tokenizer
from tests.unit.test_grammar import accepts
from tokenizers import Tokenizer

from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tasks.grammar import YES_NO, ChoiceGrammar, NumberGrammar, ObjectGrammar

LABELS = "dog|dog house|hot dog|犬|Überraschung|naïve café|C++|a-b|3,|x, y.|dog's|42|.|日本語の本"


@pytest.mark.slow
def test_answers_as_gemma_writes_them_are_allowed_and_read(
    gemma_tokenizer: Tokenizer,
) -> None:
    processor = PaliGemmaProcessor(gemma_tokenizer, 4, 224)
    labels = LABELS.split("|")
    codes = "".join(f"<seg{i * 8:03}>" for i in range(16))
    for masks in (False, True):
        grammar = ObjectGrammar(processor, labels, masks)
        for order in (labels, labels[::-1]):
            text = " ; ".join(
                f"<loc0000><loc{i:04}><loc0512><loc1023>{codes * masks} {label}"
                for i, label in enumerate(order)
            )
            ids = processor.encode_suffix(text)[:-1]
            assert accepts(grammar, ids)
            assert [f.label for f in grammar.read(ids)] == order
            assert not accepts(ObjectGrammar(processor, labels[1:], masks), ids)
    for choice in YES_NO:
        assert accepts(ChoiceGrammar(processor, YES_NO), processor.encode_suffix(choice)[:-1])
    assert accepts(NumberGrammar(processor), processor.encode_suffix("1024")[:-1])
