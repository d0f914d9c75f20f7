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
"""Words that negate the words after them. English words that end in `n't` negate, too."""

NEGATING_PHRASES: Final = {
    "fail": "to", "unabl": "to", "refus": "to", "declin": "to", "neglect": "to", "yet": "to",
    "advis": "against", "argu": "against", "decid": "against", "recommend": "against", "vote": "against",
    "warn": "against", "instead": "of", "rather": "than", "lack": "", "absenc": "", "absent": "",
}  # fmt: skip
"""Stems that negate the words after them if the word in the value follows. An empty value allows any word to follow."""

NO_NEGATIONS: Final = frozenset(
    [("not", "only"), ("no", "doubt"), *(("no", word) for word in ("fewer", "less", "later", "more", "earlier"))]
)
"""Pairs of words that look like the beginning of a negation, but assert something: "no fewer than 40"."""

PREFIXES: Final = ("un", "in", "im", "il", "ir", "non", "dis")
"""Prefixes that negate: "unsafe" negates "safe" if the other text has "safe"."""

NO_PREFIXES_WORDS: Final = (
    "disclose discount discover disease dispatch display distance distress import important impress incline income "
    "increase indeed index inform information inland input inside insight instead intense intend intent invest "
    "irrigate union unit unite united until"
)
NO_PREFIXES: Final = frozenset(NO_PREFIXES_WORDS.split())
"""Words whose first letters only look like one of `PREFIXES`."""

_OPPOSITES: Final = """
above/below accept/refuse accept/reject active/inactive after/before ahead/behind allow/forbid allow/prevent
allow/refuse always/rarely approve/refuse approve/reject arrive/leave asset/liability begin/end benign/malignant
best/worst better/worse big/small bigger/smaller borrow/lend bought/sold buy/sell cheap/expensive common/rare
credit/debit creditor/debtor cut/add cut/increase cut/raise cut/rise day/night decline/grow decline/increase
decline/rise decline/rose decrease/grow decrease/increase decrease/rise decrease/rose deficit/surplus deposit/withdraw
difficult/easy down/up drop/increase drop/rise earlier/later early/late east/west encourage/discourage enter/leave
exclude/include expand/contract expand/shrink expire/renew export/import external/internal fail/succeed failure/success
fall/grow fall/increase fall/rise fall/rose false/true faster/slower father/mother fell/grew fell/increase
fell/increased fell/rise fell/rose female/male few/many fewer/more final/initial finish/start first/last forbid/permit
former/latter frequent/rare full/empty gain/drop gain/lose gain/loss gained/lost grant/deny grant/refuse greater/less
greater/lower greater/smaller grew/shrank grow/shrink hard/soft harder/softer heavier/lighter high/low higher/lower
highest/lowest hire/dismiss import/export improve/worsen increase/lower increase/reduce inferior/superior input/output
invest/withdraw join/leave large/small larger/smaller largest/smallest least/most left/right lengthen/shorten less/more
longer/briefer longer/less longer/shorter lose/win loss/profit lost/won lower/raise majority/minority maximum/minimum
men/women narrow/wide narrower/wider negative/positive newer/older north/south obese/lean old/new older/newer
older/younger open/close oppose/support own/lease pass/fail permit/prohibit praise/criticise private/public quick/slow
quicker/slower reduce/raise remain/leave rich/poor richer/poorer rise/sink safe/dangerous safe/harmful senior/junior
shallow/deep solvent/bankrupt start/end start/stop stay/leave strengthen/weaken strong/weak stronger/weaker
sufficient/scarce survive/die tighten/loosen upgrade/downgrade upper/lower urban/rural victory/defeat
voluntary/compulsory warm/cold warmer/colder wax/wane weaker/stronger wet/dry
"""
OPPOSITES: Final = tuple(tuple(pair.split("/")) for pair in _OPPOSITES.split())
"""Pairs of opposites. A statement with one word of a pair denies the same statement with the other word."""

_IRREGULAR: Final = """
arose:arise ate:eat began:begin begun:begin bit:bite bled:bleed bore:bear borne:bear bought:buy bred:breed broke:break
broken:break brought:bring built:build burnt:burn came:come caught:catch chose:choose chosen:choose dealt:deal
drank:drink drawn:draw drew:draw driven:drive drove:drive drunk:drink eaten:eat fallen:fall fed:feed fell:fall
felt:feel fled:flee flew:fly flown:fly forbade:forbid forbidden:forbid forgot:forget forgotten:forget fought:fight
found:find froze:freeze frozen:freeze gave:give given:give gone:go grew:grow grown:grow held:hold hid:hide hidden:hide
kept:keep knew:know known:know laid:lay lain:lie led:lead left:leave lent:lend lit:light lost:lose made:make meant:mean
met:meet mistook:mistake overcame:overcome paid:pay ran:run rang:ring ridden:ride risen:rise rode:ride rose:rise
rung:ring said:say sank:sink saw:see seen:see shaken:shake shone:shine shook:shake shot:shoot shown:show shrank:shrink
shrunk:shrink slept:sleep sold:sell sought:seek sped:speed spent:spend spoke:speak spoken:speak stole:steal
stolen:steal stood:stand struck:strike swam:swim swept:sweep swore:swear taken:take taught:teach thought:think
threw:throw thrown:throw told:tell took:take undergone:undergo underwent:undergo went:go withdrawn:withdraw
withdrew:withdraw woke:wake woken:wake won:win wore:wear worn:wear written:write wrote:write
"""
IRREGULAR: Final = dict(form.split(":") for form in _IRREGULAR.split())
"""Maps irregular verb forms to their verbs, since such a form and its verb have different stems."""

ENDINGS: Final = ("ful", "less")
"""A word with the first ending is the opposite of the same word with the second ending: "useful", "useless"."""

_MODAL_WORDS: Final = "may might could would should can"
MODALS: Final = frozenset(_MODAL_WORDS.split())
"""Modal verbs. A statement with one of these verbs is not stated as a fact."""

_BEFORE_MONTHS_WORDS: Final = "after before by during early from in late last next of since this through to until"
BEFORE_MONTHS: Final = frozenset(_BEFORE_MONTHS_WORDS.split())
"""A "may" after one of these words is the month."""

_UNCERTAIN_WORDS: Final = "aim attempt expect fear forecast hope intend plan predict propos threaten tri will would"
UNCERTAIN: Final = frozenset(_UNCERTAIN_WORDS.split())
"""Stems of words such as "expect": the "to" after such a word begins something that has not happened."""
