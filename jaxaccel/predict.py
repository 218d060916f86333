"""Predicts files, folders, standard input and texts with a trained model: ``python -m jaxaccel.predict RUN INPUT...``.

RUN is the directory of a run, of its best replica (runs/NAME/best), or of a compressed model (runs/NAME-compressed), or
a bundle that jaxaccel.export wrote.
INPUT is a file, or a folder, which is searched with all folders in it. Of a model of pictures these are image files, of
one of sounds WAV, FLAC, Ogg, MP3 and AIFF of any rate. Of a model of texts each line of a text file is one, and so is
each row of a csv, tsv or jsonl. Without INPUT, and of -, standard input is read: a line is a text, or the path of a
file; a picture, a sound or an array that is piped in as it is counts as one file.

Each input becomes one line of JSON, in order and as soon as it is computed: its class, and the most probable classes;
of a text to translate its translation and score; of speech its text, the mean log probability of the outputs, and the
seconds from which and to which each word was said. An input that cannot be read becomes a line with its error, and the
exit code is 2 at the end.

With --stream standard input is one sound that is recognized while it arrives: raw little-endian 16-bit samples of one
channel and of the model's rate, or WAV of these. A line is written whenever the text has changed, and one at the end or
at Ctrl-C, with words, real-time factor and latency. The model must hear in one direction, and be trained with
--task.normalize data or none.

For instance:

  python -m jaxaccel.predict runs/flowers rose.jpg new_photos --top 3
  python -m jaxaccel.predict runs/intents questions.txt --output answers.jsonl
  python -m jaxaccel.predict runs/intents --text "wake me at seven" --text "what is the weather"
  python -m jaxaccel.predict runs/multi30k_en_de sentences.txt --beam 5 --nbest 3
  python -m jaxaccel.predict runs/multi30k_en_de --split train --beam 5 --output taught.jsonl
  tail -f log | python -m jaxaccel.predict runs/intents -
  curl -s https://example.org/rose.jpg | python -m jaxaccel.predict runs/flowers -
  python -m jaxaccel.predict runs/dictation meeting.flac recordings
  arecord -f S16_LE -r 16000 | python -m jaxaccel.predict runs/dictation --stream
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jaxaccel import cli
from jaxaccel.core.options import Count, CountOrZero, Options, Positive
from jaxaccel.data.lines import Readable
from jaxaccel.deployment.bundle import EngineName
from jaxaccel.deployment.deployed import Deployed
from jaxaccel.deployment.load import load
from jaxaccel.deployment.logit_stream import CHUNK_MS
from jaxaccel.deployment.predict_inputs import (
    STDIN,
    check_places,
    find_sources,
    predict_sources,
    predict_split,
    read_literals,
)
from jaxaccel.deployment.signing import verify_bundle
from jaxaccel.deployment.stream_input import recognize_stream
from jaxaccel.deployment.trained import Trained
from jaxaccel.errors import UserError, option
from jaxaccel.tasks.prediction import BATCH


@dataclasses.dataclass(frozen=True)
class PredictOptions(Options):
    """What to predict, and how to write it."""

    inputs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Files and folders to predict; - is standard input [default: -, where there is no --text]."""
    text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Predict this text, after the files; may be given several times."""
    split: str = ""
    """Predict this split of the run's data set, and write its examples with what the model says in the place of
    what they say: a data set for another model to train on. What cannot be predicted is left out, and counted."""
    top: Count = 5
    """Number of the most probable classes to write."""
    beam: CountOrZero = 0
    """Of a model that translates, search for the best translation among so many hypotheses [default: the run's
    --task.beam]."""
    nbest: CountOrZero = 0
    """Of a model that translates, write so many translations with their scores, the best first."""
    which: str = "best"
    """Take this checkpoint: best, last or the number of a step; of a compressed model the name of a step,
    by default the last."""
    batch: Count = BATCH
    """Compute so many inputs at a time at most."""
    engine: EngineName = "auto"
    """Compute a bundle with this; auto is the one that was fastest when it was exported."""
    key: Path | None = None
    """Verify the signature of a bundle with this public key, in PEM, before anything of it is read."""
    require_signature: bool = False
    """Refuse what is not verified."""
    stream: bool = False
    """Recognize the samples that arrive on standard input, as one utterance."""
    chunk_ms: Positive = CHUNK_MS
    """With --stream, compute so many milliseconds of sound at a time."""
    output: Path | None = None
    """Write to this file [default: standard output]."""
    trust: bool = False
    """Execute code that the run brings along, also where somebody else wrote it."""
    traceback: bool = False
    """Show Python's traceback when something goes wrong."""

    def check_values(self) -> None:
        """Checks that a stream, and a split, come alone, and that there is a key where there must be."""
        if self.require_signature and self.key is None:
            raise UserError(
                f"{option('require_signature', True)} needs the public key: {option('key', 'FILE')}"
            )
        if self.split and (self.inputs or self.text or self.stream):
            raise UserError(f"{option('split', self.split)} is all that is predicted: name no other inputs")
        if self.stream and (self.text or any(place != STDIN for place in self.inputs)):
            raise UserError(f"{option('stream', True)} reads standard input alone: name no other inputs")


@dataclasses.dataclass
class Counts:
    """What has been written."""

    inputs: int = 0
    errors: int = 0
    left_out: int = 0


def write_predictions(run: Path | str, options: PredictOptions) -> Counts:
    """Predicts all inputs and writes them, as the command does.

    Raises:
      UserError: there is no such run, checkpoint or input, or the file cannot be written.
    """
    if options.stream:
        return _write_stream(run, options)
    if options.split:
        return _write_split(run, options)
    places = check_places(options.inputs or (() if options.text else (STDIN,)))
    trained = _load(run, options)
    sources, literal = find_sources(trained.task, places), read_literals(trained.task, options.text)
    if STDIN in sources and sys.stdin.isatty():
        print("reading from the terminal, one input a line; Ctrl-D ends", file=sys.stderr)
    counts = Counts()
    with _opened(options.output, sources) as out, _progress(options.output, sources) as progress:
        bar = progress.add_task("", total=len(sources) if len(sources) > 1 else None, told="")
        written = predict_sources(
            trained, sources, literal, top=options.top, batch=options.batch,
            advance=lambda: progress.advance(bar),
        )  # fmt: skip
        for records in written:
            _write(out, records, options.output)
            counts.inputs += len(records)
            counts.errors += sum("error" in record for record in records)
            progress.update(bar, told=f"{counts.inputs:,} predicted")
    return counts


def _write_stream(run: Path | str, options: PredictOptions) -> Counts:
    """Writes what is recognized of the samples on standard input."""
    trained = _load_run(run, options, "stream")
    if sys.stdin.isatty():
        raise UserError(
            f"{option('stream', True)} reads samples from a pipe: arecord -f S16_LE -r 16000 | python -m "
            f"jaxaccel.predict {run} --stream"
        )
    with _opened(options.output, [STDIN]) as out:
        for record in recognize_stream(trained, cast(Readable, sys.stdin.buffer), chunk_ms=options.chunk_ms):
            _write(out, [record], options.output)
    return Counts(inputs=1)


def _write_split(run: Path | str, options: PredictOptions) -> Counts:
    """Writes the examples of a split as the model sees them."""
    trained = _load_run(run, options, "split")
    source = trained.source(options.split)
    counts = Counts()
    with _opened(options.output, []) as out, _progress(options.output, []) as progress:
        bar = progress.add_task("", total=len(source), told="")
        for records, left_out in predict_split(trained, source, batch=options.batch, top=options.top):
            _write(out, records, options.output)
            counts.inputs += len(records)
            counts.left_out += left_out
            progress.update(bar, completed=counts.inputs + counts.left_out)
    if counts.left_out:
        print(
            f"{counts.left_out:,} of {len(source):,} examples cannot be predicted and are left out",
            file=sys.stderr,
        )
    return counts


def _load(run: Path | str, options: PredictOptions) -> Trained | Deployed:
    if options.key is not None:
        verify_bundle(run, options.key)
    which = int(options.which) if options.which.isdecimal() else options.which
    found = load(run, which=which, trust=options.trust, engine=options.engine)
    if isinstance(found, Trained):
        return search_wider(found, options)
    if options.beam or options.nbest:
        name = "beam" if options.beam else "nbest"
        raise UserError(f"{run} is a bundle, which searches as it was exported: leave out {option(name)}")
    return found


def _load_run(run: Path | str, options: PredictOptions, name: str) -> Trained:
    """Loads what must be a run, because of the option of that name."""
    found = _load(run, options)
    if not isinstance(found, Trained):
        raise UserError(f"{option(name)} needs a run, and {run} is a bundle: name the run")
    return found


def search_wider(trained: Trained, options: PredictOptions) -> Trained:
    """The model with the hypotheses that are asked for, and at least as many as the translations.

    Raises:
      UserError: it searches nothing.
    """
    if not (options.beam or options.nbest):
        return trained
    beam = max(options.beam or getattr(trained.task, "beam", 1), options.nbest)
    return trained.with_task(beam=beam, **({"nbest": options.nbest} if options.nbest else {}))


def _write(out: IO[bytes], records: Sequence[dict[str, Any]], place: Path | None) -> None:
    try:
        out.write(b"".join(map(to_line, records)))
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _no_place(place, error) from error


def to_line(record: dict[str, Any]) -> bytes:
    """A record as a line of JSON in UTF-8; what is no character, as in some names of files, is escaped."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


@contextlib.contextmanager
def _opened(place: Path | None, sources: Sequence[Path]) -> Iterator[IO[bytes]]:
    if place is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    try:
        if place.is_file() and any(_is_same(source, place) for source in sources):
            raise UserError(f"{option('output', place)} is an input as well: choose another file")
        file = place.open("wb")
    except OSError as error:
        raise _no_place(place, error) from error
    with file:
        yield file


def _is_same(source: Path, place: Path) -> bool:
    """Whether a source is that file, also where the shell opened it."""
    try:
        found = os.fstat(sys.stdin.fileno()) if source == STDIN else source.stat()
    except OSError:  # standard input that is no file of the system
        return False
    return os.path.samestat(found, place.stat())


def _no_place(place: Path | None, error: OSError) -> UserError:
    where, reason = place or "standard output", error.strerror or error
    return UserError(
        f"cannot write to {where} ({reason}): choose another place with {option('output', 'FILE')}"
    )


def _progress(output: Path | None, sources: Sequence[Path]) -> Progress:
    """A bar of the files that have been read; none where the predictions themselves appear on the terminal."""
    seen = (output is None and sys.stdout.isatty()) or STDIN in sources
    return Progress(
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True, disable=seen or not sys.stderr.isatty(),
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code.

    Raises:
      UserError: something is wrong with the words, the run or, after all others were predicted, with inputs.
    """
    words = list(argv)
    run = words.pop(0) if words and not words[0].startswith("-") else None
    if run is None and not {"-h", "--help"} & set(words):
        raise UserError("name a run: python -m jaxaccel.predict runs/digits four.png (--help shows all)")
    options = cli.parse_options("python -m jaxaccel.predict RUN", __doc__ or "", PredictOptions(), words)
    assert run is not None
    counts = write_predictions(run, options)
    if counts.errors:
        raise UserError(
            f"{counts.errors:,} of {counts.inputs:,} inputs could not be predicted: the lines with an error say why"
        )
    return 0


cli.make_callable(__name__, "jaxaccel.deployment.predict_inputs", "predict")

if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
