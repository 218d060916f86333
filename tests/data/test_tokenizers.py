"""Tokenizers: learned, loaded, and what is refused."""

import csv
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxaccel.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from jaxaccel.data.tokenizers.tokenizer import MASK, PAD, UNKNOWN
from jaxaccel.errors import UserError

KINDS = ["bpe", "wordpiece"]
CLINC = Path(__file__).parent / "clinc150"
with (CLINC / "train.csv").open(newline="") as _file:
    QUERIES = [row["text"] for row in csv.DictReader(_file)]


@pytest.fixture(scope="module")
def learned():
    return {kind: train_tokenizer(QUERIES, kind, 500) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_learned_vocabulary(kind, learned):
    tokenizer = learned[kind]
    vocabulary = json.loads(tokenizer.json)["model"]["vocab"]
    assert tokenizer.vocabulary == len(vocabulary) == 500 and sorted(vocabulary.values()) == list(range(500))
    assert tokenizer.pad == vocabulary[PAD] == 0 and tokenizer.mask == vocabulary[MASK]
    assert tokenizer.unknown == (None if kind == "bpe" else vocabulary[UNKNOWN])
    assert tokenizer.count_added() == 2
    ids = tokenizer.encode(QUERIES)
    assert {x.dtype for x in ids} == {np.dtype(np.int32)} and {len({x[0], x[-1]}) for x in ids} == {2}
    # Most words of the training texts are one piece or two, far fewer than their letters.
    words = sum(len(query.split()) for query in QUERIES)
    assert words < sum(map(len, ids)) - 2 * len(ids) < 1.7 * words
    assert [tokenizer.decode(x) for x in ids[:3]] == QUERIES[:3]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_does_not_depend_on_its_company(kind, learned):
    tokenizer = learned[kind]
    together = tokenizer.encode([*QUERIES[:5], "", QUERIES[0]])
    for text, ids in zip([*QUERIES[:5], "", QUERIES[0]], together, strict=True):
        assert ids.tolist() == tokenizer.encode([text])[0].tolist()
    assert len(together[5]) == 2 and tokenizer.decode(together[5]) == ""


PROGRAM = """
import sys, csv, itertools
from jaxaccel.data.tokenizers import train_tokenizer
with open(sys.argv[1], encoding="utf-8") as file:
    texts = [row["text"] + " \\u65e5\\u672c caf\\u00e9" for row in csv.DictReader(file)]
options = itertools.product(("bpe", "wordpiece"), (False, True))
print(*(train_tokenizer(texts, kind, 500, lowercase).digest for kind, lowercase in options))
"""


def test_every_process_learns_the_same():
    found = set()
    for threads in ("1", "4"):
        environment = os.environ | {
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true",
            "PYTHONHASHSEED": threads,
        }
        command = [sys.executable, "-c", PROGRAM, str(CLINC / "train.csv")]
        found.add(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)
    assert len(found) == 1 and len(set(found.pop().split())) == 4


def test_bytes_give_every_text_back():
    tokenizer = train_tokenizer(QUERIES, "bpe", 300, lowercase=False)
    for text in ("Straße 日本\n\t 😀 \x00", " two  spaces ", "[SEP] and [PAD]", "ÀÉ"):
        ids = tokenizer.encode([text])[0]
        assert tokenizer.decode(ids) == text and not {*ids[1:-1].tolist()} & {0, 1, 2, 3}
    assert tokenizer.decode(tokenizer.encode(["a \ud83d b"])[0]) == "a \ufffd b"


def test_words_are_lower_cased_and_unknown_where_a_character_is(learned):
    tokenizer = learned["wordpiece"]
    plain, accents, unknown = (
        x.tolist() for x in tokenizer.encode(["what is it", "WHAT ís it", "what ☃ [MASK]"])
    )
    assert plain == accents and unknown[2] == tokenizer.unknown and tokenizer.mask not in unknown
    cased = train_tokenizer(["Ab ab"] * 3, "wordpiece", 20, lowercase=False)
    one, other = cased.encode(["Ab", "ab"])
    assert one.tolist() != other.tolist() and cased.unknown not in [*one, *other]


def test_the_rarest_characters_are_left_out():
    texts = [chr(0x4E00 + i % n) for n in (8, 100) for i in range(400)]
    tokenizer = train_tokenizer(texts, "wordpiece", 32)
    assert tokenizer.vocabulary == 21  # 5 special ones, and half of 32
    ids = tokenizer.encode([chr(0x4E00 + i) for i in range(100)])
    assert [x[1] != tokenizer.unknown for x in ids] == [i < 16 for i in range(100)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["x", "ab c ", "日", "a,"])
def test_a_text_of_100_000_characters(kind, unit, learned):
    text = unit * (100_000 // len(unit))
    (ids,) = learned[kind].encode([text])
    assert len(ids) >= 3
    if kind == "bpe":
        assert learned[kind].decode(ids) == text


def test_pickles_are_opened_once_in_a_process(learned, monkeypatch):
    import tokenizers

    tokenizer = learned["bpe"]
    tokenizer.encode([])
    monkeypatch.setattr(tokenizers, "Tokenizer", None)  # what would open it again
    other = pickle.loads(pickle.dumps(tokenizer))
    assert other == tokenizer and hash(other) == hash(tokenizer) and other.digest == tokenizer.digest
    assert other.encode(["a timer"])[0].tolist() == tokenizer.encode(["a timer"])[0].tolist()
    assert len(pickle.dumps(tokenizer)) < 1.1 * len(tokenizer.json) + 500 and len(repr(tokenizer)) < 80


def test_no_warning_of_forks(learned):
    program = """
import os
from jaxaccel.data.tokenizers import train_tokenizer
tokenizer = train_tokenizer(["one two three"] * 100, "wordpiece", 50)
tokenizer.encode(["one"] * 100)
child = os.fork()
tokenizer.encode(["two"] * 100)
if child:
    os.waitpid(child, 0)
"""
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_padding_and_truncation_of_a_file_are_off(learned, tmp_path):
    value = json.loads(learned["wordpiece"].json)
    value["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    value["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 3, "pad_type_id": 0,
        "pad_token": "[SEP]",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = load_tokenizer(place)
        assert (
            tokenizer.encode(QUERIES[:2])[1].tolist() == learned["wordpiece"].encode(QUERIES[:2])[1].tolist()
        )
        assert tokenizer.pad == 3


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##s", "été", "ete", "."]


def test_vocabulary_of_bert(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(PIECES).encode())
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(["Playing plays Été."])[0].tolist() == [2, 5, 6, 5, 7, 9, 10, 3]
    assert (tokenizer.vocabulary, tokenizer.pad, tokenizer.unknown, tokenizer.mask) == (11, 0, 1, 4)
    cased = load_tokenizer(tmp_path / "vocab.txt", lowercase=False)
    assert cased.encode(["Playing été"])[0].tolist() == [2, 1, 8, 3]
    (tmp_path / "vocab.txt").write_text("\n".join([*PIECES, "Play", ""]), encoding="utf-8")
    assert load_tokenizer(tmp_path).encode(["Playing"])[0].tolist() == [2, 11, 6, 3]


def word_piece(vocabulary, **fields):
    model = {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100}  # fmt: skip
    return json.dumps({"version": "1.0", "model": model} | fields)


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
DOUBLING = {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [DOUBLE] * 6}] * 10}
TEMPLATE = {
    "type": "TemplateProcessing", "pair": [],
    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [999], "tokens": ["[CLS]"]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"[1]", "no model of tokens"),
        (b'{"model": {}}', "data did not match"),
        (b"[" * 100_000, "recursion"),
        (b"\xff\xfe", "can't decode byte 0xff"),
        (word_piece({"a": 0}).encode(), "no id for '.UNK.', which it calls unknown"),
        (word_piece({"[UNK]": 4_000_000_000}).encode(), "ids up to 4000000000"),
        (word_piece({"[UNK]": 0}, post_processor=TEMPLATE).encode(), "a template of ids that are none"),
        (word_piece({"[UNK]": 0}, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}).encode(),
         "Precompiled"),
        (word_piece({"[UNK]": 0}, normalizer=DOUBLING).encode(), "normalization that makes 1.1.e.18 characters of one"),
        (word_piece({"[UNK]": 0}, pre_tokenizer={"type": "Import", "name": "os"}).encode(), "did not match"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line(content, message, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(
        UserError, match=rf"tokenizer.json is damaged or is no tokenizer \(.*{message}"
    ) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).count("damaged") == 1


def test_what_is_no_tokenizer(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"holds no tokenizer: neither tokenizer.json nor vocab.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"x.json cannot be read: No such file"):
        load_tokenizer(tmp_path / "x.json")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\na\n")
    with pytest.raises(UserError, match=r"vocab.txt is no vocabulary of BERT: it has no line \[SEP\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\na\nb\na\n")
    with pytest.raises(UserError, match=r"vocab.txt, line 4: 'a' stands in line 2 already"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr("jaxaccel.data.tokenizers.load.MAX_BYTES", 10)
    with pytest.raises(UserError, match=r"vocab.txt has more than 10 bytes"):
        load_tokenizer(tmp_path)


def test_options_are_checked():
    with pytest.raises(UserError, match="kind must be bpe or wordpiece, got 'unigram'"):
        train_tokenizer(["a"], "unigram")
    with pytest.raises(UserError, match="size must be at least 260 for bpe, one for each byte, got 100"):
        train_tokenizer(["a"], "bpe", 100)
    with pytest.raises(UserError, match="size must lie in"):
        train_tokenizer(["a"], "wordpiece", 0)
    with pytest.raises(UserError, match="there are none, or only empty ones"):
        train_tokenizer(["", " \n"])
    with pytest.raises(UserError, match="put the one text into a list"):
        train_tokenizer(["a b"] * 3).encode("a")
    with pytest.raises(UserError, match="one of them is 3"):
        train_tokenizer(["a b"] * 3).encode([3])


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"need the package tokenizers: pip install 'jaxaccel\[text\]'"):
        Tokenizer('{"model": {"type": "new"}}').encode(["a"])
    with pytest.raises(UserError, match=r"pip install 'jaxaccel\[text\]'"):
        train_tokenizer(["a"])
