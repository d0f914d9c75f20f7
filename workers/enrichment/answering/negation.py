"""Words that negate a statement, and pairs of words with opposite meanings. Data, no logic.

English has negations, prefixes and opposites; German, French and Spanish have negations only.
"""

from __future__ import annotations

from typing import Final

NEGATIONS_WORDS: Final = (
    "no not never none nor neither without cannot nobody nothing nowhere hardly scarcely barely nicht nichts nie "
    "niemals niemand ohne weder kein keine keinen keinem keiner keines pas jamais sans ni rien aucun aucune nunca "
    "jamás sin ningún ninguno ninguna nadie tampoco 不 没 沒 未 無 无 非"
)
NEGATIONS: Final = frozenset(NEGATIONS_WORDS.split())
"""Words that negate the words after them. English words in `n't` negate, too."""

NEGATING_PHRASES: Final = {
    "fail": "to", "unabl": "to", "refus": "to", "declin": "to", "neglect": "to", "yet": "to",
    "advis": "against", "argu": "against", "decid": "against", "recommend": "against", "vote": "against",
    "warn": "against", "instead": "of", "rather": "than", "lack": "", "absenc": "", "absent": "",
}  # fmt: skip
"""Stems that negate the words after them; the value is the word that must follow, or empty."""

NO_NEGATIONS: Final = frozenset(
    [("not", "only"), ("no", "doubt"), *(("no", word) for word in ("fewer", "less", "later", "more", "earlier"))]
)
"""Pairs of words that begin like a negation, but assert something: "no fewer than 40"."""

PREFIXES: Final = ("un", "in", "im", "il", "ir", "non", "dis")
"""A word with one of these prefixes negates the word without it, if the other text has that word."""

NO_PREFIXES_WORDS: Final = (
    "disclose discount discover disease dispatch display distance distress import important impress incline income "
    "increase indeed index inform information inland input inside insight instead intense intend intent invest "
    "irrigate union unit unite united until"
)
NO_PREFIXES: Final = frozenset(NO_PREFIXES_WORDS.split())
"""Words that only seem to have a prefix."""

_OPPOSITES: Final = """
above/below accept/reject active/inactive after/before allow/forbid allow/prevent always/rarely approve/reject
asset/liability begin/end benign/malignant best/worst better/worse big/small bigger/smaller borrow/lend bought/sold
buy/sell cheap/expensive common/rare credit/debit creditor/debtor day/night decline/grow decline/increase decline/rise
decline/rose decrease/grow decrease/increase decrease/rise decrease/rose deficit/surplus deposit/withdraw
difficult/easy down/up earlier/later early/late east/west exclude/include expand/shrink export/import
external/internal fail/succeed failure/success fall/grow fall/increase fall/rise fall/rose false/true faster/slower
father/mother fell/grew fell/increase fell/increased fell/rise fell/rose female/male few/many fewer/more finish/start
first/last forbid/permit frequent/rare gain/lose gain/loss gained/lost greater/less greater/lower greater/smaller
grew/shrank grow/shrink hard/soft harder/softer heavier/lighter high/low higher/lower highest/lowest improve/worsen
increase/lower increase/reduce inferior/superior input/output invest/withdraw large/small larger/smaller
largest/smallest least/most left/right less/more longer/shorter lose/win loss/profit lost/won lower/raise
maximum/minimum men/women negative/positive newer/older north/south older/younger open/close oppose/support
permit/prohibit reduce/raise safe/dangerous start/end start/stop strengthen/weaken strong/weak stronger/weaker
survive/die victory/defeat warm/cold warmer/colder wet/dry
"""
OPPOSITES: Final = tuple(tuple(pair.split("/")) for pair in _OPPOSITES.split())
"""Pairs of opposites: a statement with one word denies an equal statement with the other word."""

_IRREGULAR: Final = """
began:begin begun:begin bought:buy broke:break broken:break built:build chose:choose chosen:choose fell:fall fallen:fall
fought:fight found:find gave:give given:give grew:grow grown:grow held:hold kept:keep left:leave lent:lend lost:lose
made:make met:meet paid:pay ran:run rose:rise risen:rise said:say sank:sink shrank:shrink shrunk:shrink sold:sell
sought:seek spent:spend stood:stand taken:take took:take taught:teach thought:think told:tell went:go gone:go won:win
withdrew:withdraw withdrawn:withdraw wrote:write written:write
"""
IRREGULAR: Final = dict(form.split(":") for form in _IRREGULAR.split())
"""Forms of verbs that have another stem than the verb."""
