"""The report of rollouts: one HTML page without scripts or external resources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from html import escape
from math import log10
from typing import Final

from cli.operations.rollouts import JudgedRollout
from producers.times import show_time
from schemas.rollout.comparison import Comparison
from schemas.rollout.e_process import DECIDED
from schemas.rollout.judge import ProfileJudge

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 220, 40, 24
_SHOWN_WORDS: Final = 200
"""Differences are marked only in this many words at an answer's start, because comparing takes quadratic time."""
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1a1a1a; }
h2 { margin-top: 2.5rem; } table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #ddd; padding: .4rem .6rem; text-align: left; vertical-align: top; }
td.answer { width: 50%; white-space: pre-wrap; overflow-wrap: anywhere; } td.number { text-align: right; }
mark { background: #ffe08a; } svg { max-width: 100%; height: auto; } svg text { font-size: 11px; }
"""


def page(found: Sequence[JudgedRollout]) -> str:
    """Return a page with each rollout's steps and their reasons, a chart for each profile, and differing answers."""
    parts = "\n".join(_rollout(each) for each in found) or "<p>There is no rollout.</p>"
    # The policy keeps a browser from loading anything, even if an answer's text were ever taken for markup.
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Rollouts</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{_STYLE}</style></head><body><h1>Rollouts</h1>\n{parts}\n</body></html>\n"
    )


def _rollout(found: JudgedRollout) -> str:
    order, profiles = found.rollout.order, sorted(found.judge.profiles.items())
    way = [("shadow", show_time(order.at), "operator", "started")]
    way += [(each.step.value, show_time(each.at), each.by, each.why) for each in found.rollout.steps]
    return "\n".join(
        [
            f"<h2>{escape(order.alias)}: candidate {escape(order.candidate)}, {found.rollout.step}</h2>",
            f"<p>{found.judge.compared} jobs compared. An e-value of {DECIDED:g} decides.</p>",
            _table(("step", "time", "by", "why"), way),
            "<h3>Evidence</h3>",
            _table(
                ("profile", "jobs", "differ", "e-value: equal", "e-value: different", "guards that decided"),
                [_evidence(name, each) for name, each in profiles],
            ),
            *(f"<h3>Profile {escape(name)}</h3>{_chart(each)}" for name, each in profiles if each.path),
            f"<h3>Differing answers: the latest {len(found.different)}</h3>",
            _differences(found.different),
        ]
    )


def _evidence(name: str, profile: ProfileJudge) -> tuple[str, ...]:
    difference = profile.difference
    values = (f"{difference.below:.3g}", f"{difference.above:.3g}")
    guards = ", ".join(profile.tripped) or "none"
    return name, str(difference.count), f"{difference.mean:.1%}", *values, guards


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{body}</table>"


def _chart(profile: ProfileJudge) -> str:
    """Return a chart of both claims' e-values over the compared jobs, on a log scale, with the deciding value."""
    lowest, highest = -2.0, max(2.0, *(max(pair) for pair in profile.path))

    def line(values: Sequence[float], colour: str) -> str:
        step = (_WIDTH - _LEFT) / max(1, len(values) - 1)
        points = " ".join(f"{_LEFT + at * step:.1f},{height(value):.1f}" for at, value in enumerate(values))
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'

    def height(value: float) -> float:
        return (_HEIGHT - _BOTTOM) * (1 - (max(lowest, value) - lowest) / (highest - lowest))

    decides = height(log10(DECIDED))
    equal = line([pair[0] for pair in profile.path], "#1b7f4b")
    other = line([pair[1] for pair in profile.path], "#b3261e")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="e-values over the compared jobs">'
        f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{decides:.1f}" y2="{decides:.1f}" stroke="#888" stroke-dasharray="4"/>'
        f'<text x="0" y="{decides + 4:.1f}">e = {DECIDED:g}</text><text x="0" y="{height(0) + 4:.1f}">e = 1</text>'
        f"{equal}{other}"
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{len(profile.path)} jobs; green: the answers are equal, '
        "red: they are different</text></svg>"
    )


def _differences(different: Sequence[Comparison]) -> str:
    if not different:
        return "<p>No answers differ.</p>"
    rows = []
    for each in reversed(different):
        primary, candidate = _marked(each.primary_text or "", each.candidate_text or "")
        rows.append(
            f'<tr><th colspan="2">{escape(each.job_id)}, profile {escape(each.profile)}</th></tr>'
            f'<tr><td class="answer">{primary}</td><td class="answer">{candidate}</td></tr>'
        )
    return f"<table><tr><th>primary</th><th>candidate</th></tr>{''.join(rows)}</table>"


def _marked(one: str, other: str) -> tuple[str, str]:
    """Return two texts as HTML, with their differing words marked."""
    ours, theirs = one.split(" "), other.split(" ")
    shown: tuple[list[str], list[str]] = ([], [])
    blocks = SequenceMatcher(None, ours[:_SHOWN_WORDS], theirs[:_SHOWN_WORDS], autojunk=False).get_opcodes()
    for kind, a, b, c, d in blocks:
        for parts, words in zip(shown, (ours[a:b], theirs[c:d]), strict=True):
            text = escape(" ".join(words))
            if text:
                parts.append(text if kind == "equal" else f"<mark>{text}</mark>")
    for parts, words in zip(shown, (ours[_SHOWN_WORDS:], theirs[_SHOWN_WORDS:]), strict=True):
        parts.append(escape(" ".join(words)))
    return " ".join(shown[0]), " ".join(shown[1])
