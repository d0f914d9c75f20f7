"""Enrichment: from the sources that a job names to numbered evidence before its question, and back to citations.

A job's sources go down this list; each step has a type, so that a signature says what has happened already.

    enrich      the way of one job, under one budget                         Sources → Evidence
    search/     providers that turn a query into links or abstracts         str → Found
      words     the question in a prompt, and the words of it to match      str → str
    fetching/
      read      one URL, from the cache or fetched and read                  str → Reading
      fetch     one URL, redirect by redirect, behind the egress guard       str → Page
      robots    which paths a site's robots.txt allows; politeness: how often
    cache/      readings: in memory, in Redis, in a file
    turns       neither one job nor one tenant has all the connections and processes
    processes/
      pool      processes that may be killed; page bytes are only ever parsed in them
      child     one process as the worker sees it; frames: as it sees itself
      member    the loop of one of them; confinement: its fences
    reading/
      charset, hidden, extract, pdf, particulars   bytes to the text that a person would see   Page → Document
        css, media, unseen, sheets   which of a page's own styles hide; lengths and color are their values
      steering  the ways in which a page tries to steer its reader           Document → label
    choosing/
      rank      the passages that matter for the question                    Document → Passage
      choose    asks a member to rank, and by setting a model too
      embedder  the process with that model, and the line before it; embedding: the loop inside it
    answering/
      profile   how a kind of question is answered, as data: before all of this the search, behind it the checks
      grounding numbered sources and the question as one prompt, in the words of a template   Evidence → GroundedPrompt
      links     no link in the answer that was not given                     str, Evidence → str
      cite      which sentence of the answer rests on which source           str, Evidence → Citation
        contradiction, clauses   whether a source says otherwise in the same words; negation is data
      answer    the checks of an answer, and the notes of its result         str, Evidence, Profile → Answer

Everything that goes wrong with a source is a note in the result, never a failed job, unless `sources.required` finds
nothing.
"""
