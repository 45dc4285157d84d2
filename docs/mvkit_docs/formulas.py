"""Formulas: plain Unicode lines of docstrings to LaTeX, and LaTeX to MathML.

Browsers draw MathML by themselves, so that pages need no script and no network.
"""

from __future__ import annotations

import re

from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml

COMMANDS = {
    "∝": r"\propto",
    "∼": r"\sim",
    "~": r"\sim",
    "≤": r"\leq",
    "≥": r"\geq",
    "≠": r"\neq",
    "∈": r"\in",
    "⊆": r"\subseteq",
    "∏": r"\prod",
    "Π": r"\prod",
    "Σ": r"\sum",
    "∑": r"\sum",
    "∫": r"\int",
    "√": r"\surd",
    "∇": r"\nabla",
    "∞": r"\infty",
    "‖": r"\Vert",
    "→": r"\to",
    "↦": r"\mapsto",
    "·": r"\cdot",
    "×": r"\times",
    "±": r"\pm",
    "…": r"\ldots",
    "½": r"\frac{1}{2}",
    "−": "-",
    "²": "^{2}",
    "⌈": r"\lceil",
    "⌉": r"\rceil",
    "|": r"\mid",
    "α": r"\alpha",
    "β": r"\beta",
    "γ": r"\gamma",
    "Γ": r"\Gamma",
    "δ": r"\delta",
    "ε": r"\varepsilon",
    "θ": r"\theta",
    "κ": r"\kappa",
    "λ": r"\lambda",
    "μ": r"\mu",
    "ν": r"\nu",
    "π": r"\pi",
    "ρ": r"\rho",
    "σ": r"\sigma",
    "τ": r"\tau",
    "φ": r"\varphi",
    "ψ": r"\psi",
}
FUNCTIONS = {"log", "exp", "min", "max", "det", "cos", "sin", "tanh", "arg"}
PAIRS = {"(": ")", "[": "]", "{": "}"}
# a letter with an index, a density of something, a sum, a relation: what only formulas have
STRONG = re.compile(
    r"(?<![A-Za-z_])[A-Za-zα-ωΓ](?:_|\^)[\w({]"
    r"|[∏∑ΣΠ∫∇∝]|(?<![A-Za-z])[pqrNF]_?\w*\([\w|, ‖{}_^…]*\)?|KL\("
)
WEAK = re.compile(r"[-+=/·×≤≥→‖∈~|A-Za-zα-ωΓ½\d.,{}()\[\]²^−…]+")
TRAILING = ".,;:"


def to_latex(text: str) -> str:
    """A formula in plain Unicode as LaTeX."""
    parts = []
    position = 0
    while position < len(text):
        symbol = text[position]
        if symbol in "_^":
            script, position = _script(text, position + 1)
            parts.append(f"{symbol}{{{to_latex(script)}}}")
            continue
        word = re.match(r"[A-Za-z]+", text[position:])
        if word:
            parts.append(_word(word[0]))
            position += len(word[0])
            continue
        parts.append(_symbol(symbol))
        position += 1
    return "".join(parts).strip()


def _script(text: str, start: int) -> tuple[str, int]:
    """What stands below or above a letter, and the position after it."""
    if text[start : start + 1] == "{":
        end = _closing(text, start)
        return text[start + 1 : end], end + 1
    if text[start : start + 1] == "(":
        end = _closing(text, start)
        return text[start : end + 1], end + 1
    match = re.match(r"[^\W_]+|.", text[start:])
    script = match[0] if match else ""
    return script, start + len(script)


def _closing(text: str, start: int) -> int:
    """Where the bracket at `start` is closed; the end of the text if it is not."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] in PAIRS:
            depth += 1
        elif text[position] in PAIRS.values():
            depth -= 1
        if depth == 0:
            return position
    return len(text) - 1


def _word(word: str) -> str:
    if word in FUNCTIONS:
        return rf"\{word} "
    if len(word) > 2 or (word.isupper() and len(word) > 1):
        return rf"\mathrm{{{word}}}"
    return word


def _symbol(symbol: str) -> str:
    if symbol in "{}":
        return rf"\{symbol}"
    command = COMMANDS.get(symbol, symbol)
    return f"{command} " if command.startswith("\\") else command


def mathml(latex: str, *, block: bool = False) -> str:
    """LaTeX as a MathML element.

    Raises:
        MathError: LaTeX that docutils does not know.
    """
    return str(tex2mathml(latex, as_block=block))


def mark(text: str) -> str:
    """A line of prose in reStructuredText, its formulas as `:math:` and all else escaped."""
    tokens = re.split(r"(\s+)", text)
    words = tokens[::2]
    gaps = [*tokens[1::2], ""]
    marked = []
    start = 0
    while start < len(words):
        end = _end_of_run(words, start)
        if end == start:
            marked.append(escape(words[start]) + gaps[start])
            start += 1
            continue
        run = "".join(w + g for w, g in zip(words[start:end], gaps[start:end], strict=True))
        marked.append(_formula(run.rstrip()) + gaps[end - 1])
        start = end
    return "".join(marked)


def _end_of_run(words: list[str], start: int) -> int:
    """The end of the run of a formula's words from `start` on; `start` if there is none."""
    end = start
    strong = False
    while end < len(words) and words[end]:
        is_strong = bool(STRONG.search(words[end]))
        if not is_strong and not _is_weak(words[end]):
            break
        strong = strong or is_strong
        end += 1
        if words[end - 1][-1] in TRAILING and _balance("".join(words[start:end])) == 0:
            break
    while end > start and words[end - 1] in ("a", "A"):
        end -= 1
    return end if strong else start


def _is_weak(word: str) -> bool:
    """Whether a word may stand in a formula: signs, numbers, single letters, functions."""
    letters = re.findall(r"[A-Za-z]+", word)
    return bool(WEAK.fullmatch(word.rstrip(TRAILING))) and all(
        len(letter) == 1 or letter in FUNCTIONS or letter == "KL" for letter in letters
    )


def _balance(text: str) -> int:
    opened = sum(text.count(bracket) for bracket in PAIRS)
    return opened - sum(text.count(bracket) for bracket in PAIRS.values())


def _formula(run: str) -> str:
    """A run of words as a formula, or as the words that they are."""
    before = after = ""
    while run and run[-1] in TRAILING:
        run, after = run[:-1], run[-1] + after
    while run and run[0] in "([" and _balance(run) > 0:
        run, before = run[1:], before + run[0]
    while run and run[-1] in ")]" and _balance(run) < 0:
        run, after = run[:-1], run[-1] + after
    while run and run[-1] in TRAILING:
        run, after = run[:-1], run[-1] + after
    latex = to_latex(run)
    if _balance(run) != 0 or not _is_known(latex):
        return escape(before + run + after)
    return f"{escape(before)}:math:`{latex}`{escape(after)}"


def _is_known(latex: str) -> bool:
    try:
        mathml(latex)
    except (MathError, IndexError, KeyError, ValueError):
        return False
    return bool(latex)


def escape(text: str) -> str:
    """Text without a meaning in reStructuredText."""
    text = re.sub(r"([\\*|`])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)
