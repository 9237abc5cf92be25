"""The codec against a real Erlang: terms that one wrote (a committed corpus), and ours given to one.

Each line of the corpus holds a term twice, encoded and printed, and a small reader of printed terms, which
knows nothing of the codec, says what the decoder must have made of it. Where `escript` is installed, the
corpus is written again and compared: term by term, since releases differ in the order of map entries and
in the encodings that they have. To renew it, in `erlang/`:

    escript corpus.escript | gzip -9n > corpus.tsv.gz
"""

from __future__ import annotations

import base64
import gzip
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import Phase, given, settings

from linx_trio._proto.etf import CodecError, FrozenList, FrozenMap, ImproperList, Term, decode, encode
from tests.proto.strategies import Canonical, canonical, canonical_list, keys, relaxed, terms

HERE = Path(__file__).parent / "erlang"
REFUSED = ["bitstring", "compressed", "fun", "pid", "port", "reference"]
KINDS = ["integer", "float", "atom", "binary", "list", "improper", "tuple", "map", "nested", "random"]
KINDS += ["non_canonical", *(f"unsupported_{what}" for what in REFUSED)]


class Line(NamedTuple):
    kind: str
    data: bytes
    printed: str

    @property
    def unsupported(self) -> str:
        """The name of what is refused, or nothing."""
        return self.kind.removeprefix("unsupported_") if self.kind.startswith("unsupported_") else ""


def read_lines(text: bytes) -> list[Line]:
    lines = [line.split("\t") for line in text.decode("latin-1").split("\n") if line]
    return [Line(kind, base64.b64decode(data), printed) for kind, data, printed in lines]


CORPUS = read_lines(gzip.decompress((HERE / "corpus.tsv.gz").read_bytes()))


# --- reading what io:format("~w") prints ------------------------------------------------------------------

TOKEN = re.compile(
    r"""(?P<float>-?\d+\.\d+(?:e[+-]?\d+)?) | (?P<integer>-?\d+)
      | (?P<atom>[a-zß-öø-ÿ][\w@]*) | '(?P<quoted>(?:[^'\\]|\\.)*)'
      | (?P<mark><<|>>|=>|\#\{|[\[\](){}|,])""",
    re.VERBOSE | re.DOTALL,
)
ESCAPE = re.compile(r"\\(?:x\{([0-9A-Fa-f]+)\}|([0-7]{1,3})|(.))", re.DOTALL)
NAMED_ESCAPES = dict(zip("ntrbfveds", "\n\t\r\b\f\v\x1b\x7f ", strict=True))


def unescape(match: re.Match[str]) -> str:
    hexadecimal, octal, name = match.groups()
    if name is not None:
        return NAMED_ESCAPES.get(name, name)
    return chr(int(hexadecimal, 16) if hexadecimal is not None else int(octal, 8))


class Reader:
    """Recursive descent over the tokens of one printed term."""

    def __init__(self, text: str) -> None:
        self.tokens = self.split(text)
        self.token = next(self.tokens)

    @staticmethod
    def split(text: str) -> Iterator[re.Match[str] | None]:
        at = 0
        while at < len(text):
            if text[at] == " ":
                at += 1
                continue
            token = TOKEN.match(text, at)
            assert token is not None, f"unreadable: {text[at : at + 40]!r}"
            yield token
            at = token.end()
        yield None

    def advance(self) -> re.Match[str]:
        token = self.token
        assert token is not None, "the text ends inside a term"
        self.token = next(self.tokens)
        return token

    def accept(self, mark: str) -> bool:
        if self.token is not None and self.token["mark"] == mark:
            self.token = next(self.tokens)
            return True
        return False

    def expect(self, mark: str) -> None:
        assert self.accept(mark), f"{mark} expected, {self.token} found"

    def terms_until(self, mark: str) -> list[Canonical]:
        found: list[Canonical] = []
        while not self.accept(mark):
            found.append(self.term())
            if not self.accept(","):
                self.expect(mark)
                break
        return found

    def term(self) -> Canonical:
        token = self.advance()
        match token.lastgroup, token[0]:
            case "float", text:
                return ("float", struct.pack(">d", float(text)))
            case "integer", text:
                return ("integer", int(text))
            case "atom", text:
                return ("atom", text)
            case "quoted", _:
                return ("atom", ESCAPE.sub(unescape, token["quoted"]))
            case _, "{":
                return ("tuple", tuple(self.terms_until("}")))
            case _, "<<":
                return ("binary", bytes(self.byte(item) for item in self.terms_until(">>")))
            case _, "#{":
                return self.map()
            case _, "[":
                return self.list()
        raise AssertionError(f"a term expected, {token} found")

    @staticmethod
    def byte(item: Canonical) -> int:
        assert isinstance(item[1], int)
        return item[1]

    def list(self) -> Canonical:
        items: list[Canonical] = []
        while not self.accept("]"):
            items.append(self.term())
            if self.accept("|"):
                tail = self.term()
                self.expect("]")
                return canonical_list(items, tail)
            self.accept(",")
        return canonical_list(items)

    def map(self) -> Canonical:
        pairs = []
        while not self.accept("}"):
            key = self.term()
            self.expect("=>")
            pairs.append((key, self.term()))
            self.accept(",")
        return ("map", frozenset(pairs))


def read_printed(text: str) -> Canonical:
    reader = Reader(text)
    term = reader.term()
    assert reader.token is None, f"more than one term: {reader.token}"
    return term


def test_the_reader_of_printed_terms() -> None:
    printed = r"#{[a|'B c'] => {-1,2.5e-3,<<>>,<<0,255>>},é => [],'\x{3b1}\'\000\n' => [1,#{}]}"
    assert read_printed(printed) == canonical(
        {
            ImproperList(("a",), "B c"): (-1, 2.5e-3, b"", b"\0\xff"),
            "é": [],
            "\u03b1'\0\n": [1, {}],
        }
    )


# --- the corpus -------------------------------------------------------------------------------------------


def check(line: Line) -> None:
    """The decoder must make of the encoded term what the printed one says, or refuse it by name."""
    if line.unsupported:
        with pytest.raises(CodecError, match=rf"\b{line.unsupported}\b.* is not supported at byte \d+"):
            decode(line.data)
        return
    term = decode(line.data)
    assert canonical(term) == read_printed(line.printed), line
    assert canonical(decode(encode(term))) == canonical(term), line


@pytest.mark.parametrize("kind", KINDS)
def test_what_erlang_wrote(kind: str) -> None:
    lines = [line for line in CORPUS if line.kind == kind]
    assert lines
    for line in lines:
        check(line)


def test_the_corpus_is_whole() -> None:
    assert {line.kind for line in CORPUS} == set(KINDS)
    assert len({line.printed for line in CORPUS if line.kind == "random"}) > 80
    # What the kinds are for: each tag that an Erlang writes for a supported term comes first somewhere.
    tags = {line.data[1] for line in CORPUS if not line.unsupported}
    assert tags == {70, 97, 98, 99, 100, 104, 105, 106, 107, 108, 109, 110, 111, 115, 116, 118, 119}


def test_every_truncation_of_what_erlang_wrote_is_refused() -> None:
    for line in CORPUS:
        if line.unsupported or len(line.data) > 300:
            continue
        for end in range(len(line.data)):
            with pytest.raises(CodecError, match="truncated"):
                decode(line.data[:end])


# --- a real Erlang ----------------------------------------------------------------------------------------


def run_escript(name: str, *arguments: str) -> bytes:
    escript = shutil.which("escript")
    if escript is None:
        pytest.skip("erlang-base is not installed (apt-get install erlang-base)")
    done = subprocess.run(
        [escript, str(HERE / name), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def statements(lines: list[Line]) -> list[tuple[str, object]]:
    """What the lines say, whatever the encoding: one term may take one line or three, by release."""
    said = [(line.kind, line.printed if line.unsupported else read_printed(line.printed)) for line in lines]
    return [statement for statement, _ in groupby(said)]


def test_this_erlang_writes_the_same_corpus() -> None:
    lines = read_lines(run_escript("corpus.escript"))
    assert statements(lines) == statements(CORPUS)
    for line in lines:
        check(line)


def drawn_terms(count: int) -> list[Term]:
    """The same terms at each run: what Erlang says about them is a matter of one run for all."""
    drawn: list[Term] = []

    @settings(relaxed, max_examples=count, derandomize=True, database=None, phases=[Phase.generate])
    @given(terms() | keys())
    def collect(term: Term) -> None:
        drawn.append(term)

    collect()
    return drawn


BITS = [8, 31, 32, 63, 64, 2040, 8000]
CHOSEN: list[Term] = [sign * ((1 << bits) + near) for bits in BITS for near in (-1, 0) for sign in (1, -1)]
CHOSEN += [0.0, -0.0, 5e-324, 1.7976931348623157e308]
CHOSEN += [True, "true", "", "ß" * 127, "ß" * 128, "😀" * 255, "\0\x7f\x85\xa0"]
CHOSEN += [b"", bytes(range(256)), bytes(100_000)]
CHOSEN += [[], list(range(256)), [0] * 70_000, (), tuple(range(255)), tuple(range(256))]
CHOSEN += [ImproperList((1, [2]), {}), {}, {n: [n] for n in range(100)}, ("status", "ready", 1234)]
CHOSEN += [
    {FrozenList((1, 2)): "list", (1, 2): "tuple", FrozenMap(frozenset({(True, FrozenList(()))})): "map"},
    {True: 1, "a": 2, b"a": 3, (): 4, ImproperList(((),), ()): 5},
]


def test_this_erlang_reads_what_we_write(tmp_path: Path) -> None:
    ours = [*CHOSEN, *drawn_terms(300)]
    assert len(ours) > len(CHOSEN) + 200
    questions = tmp_path / "terms"
    questions.write_bytes(b"".join(base64.b64encode(encode(term)) + b"\n" for term in ours))
    answers = run_escript("echo.escript", str(questions)).decode("latin-1").rstrip("\n").split("\n")
    for term, answer in zip(ours, answers, strict=True):
        encoded, printed = answer.split("\t")
        assert encoded != "refused", (term, printed)
        assert read_printed(printed) == canonical(term)
        assert canonical(decode(base64.b64decode(encoded))) == canonical(term)


def test_this_erlang_refuses_what_we_refuse(tmp_path: Path) -> None:
    """That our limits are Erlang's own, and that `echo.escript` would tell."""
    refused = [b"\0", b"F\x7f\xf8\0\0\0\0\0\0", b"t\0\0\0\2a\1ja\1j", b"l\0\0\0\1a\1", b"m\0\0\0\1"]
    refused += [b"w\1\xe9", b"w\3\xed\xa0\x80", b"v\1\0" + b"x" * 256]
    refused += [b"c" + text.ljust(31, b"\0") for text in (b"1.0e999", b" 1.0", b"1", b"1.0x", b"nan")]
    for data in refused:
        with pytest.raises(CodecError):
            decode(b"\x83" + data)
    questions = tmp_path / "terms"
    questions.write_bytes(b"".join(base64.b64encode(b"\x83" + data) + b"\n" for data in refused))
    answers = run_escript("echo.escript", str(questions)).decode("latin-1").rstrip("\n").split("\n")
    assert answers == ["refused\tbadarg"] * len(refused)
