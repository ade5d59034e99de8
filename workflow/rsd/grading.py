"""Is this answer right? (answer, reference answer) -> bool, by rules: strings, numbers, units, then math-verify.

What strings and plain numbers decide is decided here in microseconds. The rest goes to math-verify in a worker process,
because an answer may keep sympy busy for ever, inside C code where no signal handler runs, or ask for all memory. The
worker lets the kernel end it at the time limit, so the limit holds on any thread; the next question starts a new one.
By hand: `python -c "from rsd.grading import grade; print(grade('1/2', '0.5'))"`.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import re
import signal
import subprocess
import sys
import threading
from typing import Any

LOG = logging.getLogger(__name__)

# Longer references, or ones with more words, are prose: math-verify would pick some number out of them.
MAX_REFERENCE_CHARACTERS = 200
MAX_REFERENCE_WORDS = 4
# Longer answers are compared as strings and plain numbers alone; no reference is near this.
MAX_ANSWER_CHARACTERS = 1000
WORKER_BYTES = 2 * 2**30

_TEXT = r"\\(?:text|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit|mathsf|mbox|rm|bf)"
# The lookbehind spares the row ends of a matrix.
_SPACING = re.compile(r"(?<!\\)\\(?:!\s*|[,;:> ]|q?quad(?![a-zA-Z]))|~")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:(?:,|\{,\})\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?")
_LETTER = re.compile(r"\(?([A-Z])[.):]?")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|°)\s*$")
_TRIGONOMETRY = re.compile(r"(?<![a-zA-Z])(?:sin|cos|tan|cot|sec|csc)")
# Names of one unit; units outside this table are taken to agree with any other.
_UNITS = {
    name: names.split()[0]
    for names in (
        "mm millimeter millimetre",
        "cm centimeter centimetre",
        "m meter metre",
        "km kilometer kilometre",
        "in inch inche",
        "ft foot feet",
        "yd yard",
        "mi mile",
        "g gram",
        "kg kilogram",
        "lb pound",
        "ms millisecond",
        "s sec second",
        "min minute",
        "h hr hour",
        "day",
        "week",
        "month",
        "year yr",
        "cent",
        "dollar",
        "degree deg",
        "radian rad",
        "mph",
        "l liter litre",
        "ml milliliter millilitre",
        "unit",
        "square",
        "sq",
        "cubic",
        "people",
        "way",
    )
    for name in names.split()
}
_UNIT_WORDS = "|".join(sorted((name + "s?" for name in _UNITS), key=len, reverse=True))
# 5 cm, 5cm, 5 square units, 5\text{ cm}^2, 5\ \mathrm{apples}: a value, then words. A bare single letter after a digit
# is a variable (3s), unless there is a space.
_UNIT = re.compile(
    r"(?P<value>.*[\d})])"
    r"(?:\s*" + _TEXT + r"\s*\{(?P<marked>[\sa-zA-Z./]*[a-zA-Z][\sa-zA-Z./]*)\}|"
    r"(?P<plain>(?:\s+(?:" + _UNIT_WORDS + r"))+|\s*(?!(?:[a-z])s?(?![a-z]))(?:" + _UNIT_WORDS + r")))"
    r"\s*(?:\^\s*\{?\s*\d\s*\}?)?\s*",
    re.DOTALL,
)


def grade(answer: str | None, reference: str, *, timeout_s: float = 5) -> bool:
    """Whether `answer` equals `reference`; False for None, for what takes longer than `timeout_s` or cannot be read.

    Both may be LaTeX. A reference that is one capital letter (a choice) wants this letter, in (C), C. or \\text{C}. A
    unit, degree sign, dollar or percent sign may be missing on one side; two different known units differ. 50% equals
    50 and 0.5. A reference in prose (`is_gradable`) is matched as a string alone. Works on any thread.
    """
    if answer is None or not normalise(answer):
        return False
    answer, reference = answer.strip(), reference.strip()
    if exact_match(answer, reference):
        return True
    if letter := _letter(reference):
        return _letter(answer) == letter
    if not is_gradable(reference) or _is_word(reference):
        return False
    return _equal_values(answer, reference, timeout_s)


def exact_match(answer: str | None, reference: str) -> bool:
    """Whether both are the same string after `normalise`, which must leave something."""
    return answer is not None and normalise(answer) != "" and normalise(answer) == normalise(reference)


def is_gradable(reference: str) -> bool:
    """Whether a reference is an answer that rules can compare: not empty, and no prose."""
    bare = re.sub(r"\\(?:begin|end)\s*\{[a-z]*\*?\}|\\[a-zA-Z]+", " ", reference)
    words = re.findall(r"[A-Za-z]{3,}", bare)
    return 0 < len(reference.strip()) <= MAX_REFERENCE_CHARACTERS and len(words) <= MAX_REFERENCE_WORDS


@functools.lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """The text without what changes only its look: spaces, dollar signs, \\text, \\left, full stop, 1,000's comma.

    Degree and percent signs at the end go, words (two letters or more, nothing else) become lower case.
    """
    text = _drop_marks(text)
    text = re.sub(_TEXT + r"\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = _DEGREES.sub("", text).removesuffix("%").strip()
    if _THOUSANDS.fullmatch(text):
        text = text.replace("{,}", "").replace(",", "")
    text = re.sub(r"\s+", "", text)
    return text.lower() if len(text) > 1 and text.isalpha() else text


def _drop_marks(text: str) -> str:
    """Without mathematics and currency dollars, thin spaces, outer brackets of LaTeX and a final full stop."""
    text = text.strip().replace("−", "-").replace(r"\%", "%").replace(r"\$", "").replace("$", "").strip()
    text = re.sub(r"^\\[(\[]\s*|\s*\\[)\]]$", "", text)
    text = _SPACING.sub(lambda match: "" if match[0].startswith(r"\!") else " ", text)
    return text.strip().removesuffix(".").strip()


def _letter(text: str) -> str | None:
    """C of C, (C), C. and \\text{(C)}; None for anything else."""
    match = _LETTER.fullmatch(normalise(text))
    return match[1] if match else None


def _is_word(text: str) -> bool:
    """Whether it is one word; math-verify would take it for a product of its letters, in any order."""
    return len(normalise(text)) > 2 and normalise(text).isalpha()


def _equal_values(answer: str, reference: str, timeout_s: float) -> bool:
    (value, unit), (reference_value, reference_unit) = _split_unit(answer), _split_unit(reference)
    if unit and reference_unit and unit != reference_unit:
        return False
    number, reference_number = _plain_number(value), _plain_number(reference_value)
    if number is not None and reference_number is not None:
        if number == reference_number:
            return True
        percent, reference_percent = ("%" in _drop_marks(text)[-1:] for text in (value, reference_value))
        if percent == reference_percent:
            return False
        return number == _hundredth(reference_number) if reference_percent else _hundredth(number) == reference_number
    return len(value) <= MAX_ANSWER_CHARACTERS and _verified(value, reference_value, timeout_s)


def _split_unit(text: str) -> tuple[str, str | None]:
    """(value, canonical unit): None where there is no unit, or one that is not in the table."""
    text = _drop_marks(text)
    if _DEGREES.search(text) and not _TRIGONOMETRY.search(text):
        return _DEGREES.sub("", text), "degree"
    match = _UNIT.fullmatch(text)
    if not match:
        return text, None
    words = (match["marked"] or match["plain"]).split()
    if any(len(word) == 1 and word.islower() and word not in _UNITS for word in words):
        return text, None  # 2\\mathrm{i} is a number
    known = [_UNITS.get(word.lower()) or _UNITS.get(word.lower().removesuffix("s")) for word in words]
    return match["value"], known[0] if len(known) == 1 else None


def _plain_number(text: str) -> tuple[str, str, str] | None:
    """(sign, digits before, digits after the point) of a plain decimal, without idle zeros; None for anything else.

    Strings, since Python refuses to read numbers of more than 4300 digits.
    """
    match = _NUMBER.fullmatch(normalise(text))
    if not match or not (match[2] or match[3]):
        return None
    whole, decimals = match[2].lstrip("0"), (match[3] or "").rstrip("0")
    return ("-" if match[1] == "-" and (whole or decimals) else "", whole, decimals)


def _hundredth(number: tuple[str, str, str]) -> tuple[str, str, str]:
    sign, whole, decimals = number
    whole = whole.rjust(2, "0")
    return sign, whole[:-2].lstrip("0"), (whole[-2:] + decimals).rstrip("0")


# --- math-verify, in a process of its own --------------------------------------------------------------------------


@functools.lru_cache(maxsize=65536)
def _verified(answer: str, reference: str, timeout_s: float) -> bool:
    """What math-verify says; False where it runs out of time or memory."""
    return _WORKER.ask({"answer": answer, "reference": reference, "timeout_s": timeout_s})


class _Worker:
    """The process that runs math-verify; started at the first question, and again after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, question: dict[str, Any]) -> bool:
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._stop()  # it was ended from outside since the last question
            process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
            if reply:
                return bool(json.loads(reply))
            code = self._stop()
        if code >= 0:
            raise RuntimeError(f"the math-verify process ended by itself (code {code}); run again, and report it")
        why = f"over {question['timeout_s']} s" if code == -signal.SIGALRM else f"process ended by signal {-code}"
        LOG.warning(
            "counted as wrong (%s): answer %.60r, reference %.60r", why, question["answer"], question["reference"]
        )
        return False

    def _start(self) -> subprocess.Popen[str]:
        # -P: the modules beside this file (statistics.py, ...) must not hide those of the standard library.
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the stage; the worker leaves when its input closes
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        if not self._process.stdout.readline():
            message = self._process.stderr.read()
            self._stop()
            raise RuntimeError(
                f"math-verify cannot be started; install the locked requirements. Its message:\n{message}"
            )
        return self._process

    def _stop(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                # A closed reader makes the last flush fail, which matters no more.
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        return process.wait()

    def close(self) -> None:
        """Ends the process; the next question starts another."""
        with self._lock:
            self._stop()


_WORKER = _Worker()
atexit.register(_WORKER.close)


def _serve() -> None:
    """The worker: one JSON question a line in, true or false out. Its first line says that math-verify is loaded."""
    import os
    import resource

    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.parser import NormalizationConfig

    logging.disable()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    except (ValueError, OSError):
        print("no memory limit here", file=sys.stderr)
    # Units are split off before; math-verify's own list would take the s of 3s for seconds.
    latex = LatexExtractionConfig(
        boxed_match_priority=-1,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all"
        ),
    )

    def read(text: str) -> list[Any]:
        return parse(f"${text}$", [latex], fallback_mode="no_fallback", parsing_timeout=0, raise_on_error=True)

    def equal(question: dict[str, Any]) -> bool:
        try:
            reference, answer = read(question["reference"]), read(question["answer"])
            return verify(reference, answer, timeout_seconds=0, allow_set_relation_comp=True)
        # Whatever sympy makes of a strange answer, the answer is not the reference.
        except (Exception, RecursionError, MemoryError):
            return False

    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print must not end up among the replies, nor fill a pipe that nobody reads.
    silence = os.open(os.devnull, os.O_WRONLY)
    print("ready", file=replies, flush=True)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # no handler: the kernel ends the process, in C code too
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, question["timeout_s"])
        reply = equal(question)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    _serve()
