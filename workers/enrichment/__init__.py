"""Enrichment: from the sources that a job names to numbered evidence before its question, and back to citations.

A job's sources go down this list; each step has a type, so that a signature says what has happened already.

    enrich     the way of one job, under one budget                         Sources → Evidence
    search/    providers that turn a query into links or abstracts         str → Found
      words    the question in a prompt, and the words of it to match      str → str
    read       one URL, from the cache or fetched and read                  str → Reading
    cache/     what was read before: in memory, in Redis, in a file
    fetch      one URL, redirect by redirect, behind the egress guard       str → Page
    robots     what a site's robots.txt lets us read; politeness: how often
    turns      neither one job nor one tenant has all the connections and processes
    pool       processes that may be killed; page bytes are only ever parsed in them
      child    one process as the worker sees it; frames: as it sees itself
      member   what runs inside one of them
      charset, hidden, extract, pdf, particulars   bytes to what a person would see  Page → Document
        css, media, unseen, sheets   what of a page's own styles hides; lengths and color are their values
      steering   the ways in which it tries to steer who reads it           Document → label
      rank     the passages that matter for the question                    Document → Passage
    choose     asks a member to rank, and by setting a model too
      embedder   the process with that model, and the line before it; embedding: what runs inside it
    grounding  numbered sources and the question as one prompt, in the words of a template   Evidence → GroundedPrompt
    links      no link in the answer that was not given                     str, Evidence → str
    cite       which sentence of the answer rests on which source           str, Evidence → Citation
      contradiction, clauses   whether a source says otherwise in the same words; negation is data
    profile    how a kind of question is answered, as data: before all of this what is searched, behind it
    answer     what the answer must stand on, and what the result says      str, Evidence, Profile → Answer

Everything that goes wrong with a source is a note in the result, never a failed job, unless `sources.required` finds
nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.enrichment.answer import Answer, Unsupported, answered
    from workers.enrichment.cite import cited
    from workers.enrichment.embedder import RerankerRefused
    from workers.enrichment.enrich import Enricher
    from workers.enrichment.evidence import Evidence, LeftOut, NothingFound, NumberedSource
    from workers.enrichment.grounding import GroundedPrompt, ground
    from workers.enrichment.profile import Profile, ProfileRefused, Profiles, UnknownProfile
    from workers.enrichment.settings import EnrichmentSettings
    from workers.enrichment.template import TemplateRefused
    from workers.enrichment.tokens import room_for_sources

_HOMES = {
    "Answer": "answer",
    "Enricher": "enrich",
    "EnrichmentSettings": "settings",
    "Evidence": "evidence",
    "GroundedPrompt": "grounding",
    "LeftOut": "evidence",
    "NothingFound": "evidence",
    "NumberedSource": "evidence",
    "Profile": "profile",
    "ProfileRefused": "profile",
    "Profiles": "profile",
    "RerankerRefused": "embedder",
    "TemplateRefused": "template",
    "UnknownProfile": "profile",
    "Unsupported": "answer",
    "answered": "answer",
    "cited": "cite",
    "ground": "grounding",
    "room_for_sources": "tokens",
}

__all__ = [
    "Answer",
    "Enricher",
    "EnrichmentSettings",
    "Evidence",
    "GroundedPrompt",
    "LeftOut",
    "NothingFound",
    "NumberedSource",
    "Profile",
    "ProfileRefused",
    "Profiles",
    "RerankerRefused",
    "TemplateRefused",
    "UnknownProfile",
    "Unsupported",
    "answered",
    "cited",
    "ground",
    "room_for_sources",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the pool's processes come through here and need none of them."""
    if name not in _HOMES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
