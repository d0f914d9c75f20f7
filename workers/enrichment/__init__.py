"""Turns a job's sources into numbered evidence before its question, and finds the source of each sentence of an answer.

A job's sources pass through the steps in this list, from top to bottom. The types on the right are those that a step
takes and returns, so a signature shows which steps come before it.

    enrich      one job's way through all steps, under one budget            Sources → Evidence
    search/     providers that turn a query into links or abstracts         str → Found
      words     the question in a prompt, and its search words              str → str
    fetching/
      read      one URL, from the cache or fetched and read                  str → Reading
      fetch     one URL, redirect by redirect, behind the egress guard       str → Page
      robots    the paths that a site's robots.txt allows; politeness: the pace of requests
    rendering/  a page that a script fills, as the operator's browser shows it   Page → Page
      renderer  which pages are rendered, and from where these may load
      visit     one page in the browser, whose requests the worker answers; devtools: the browser's protocol
    cache/      readings: in memory, in Redis, in a file
    turns       fair shares of connections and processes, among tenants and among a tenant's jobs
    processes/
      pool      the processes that parse bytes of pages; the worker may kill them
      recognition   pictures of text; ocr: the process that starts tesseract; tesseract: the program and its fences
      member    the loop of a pool process; `workers.processes` has its pipes and its fences
    reading/
      extract   bytes to the text that a person would see, by media type      Page → Document
        charset, hidden, inline_style, embedded   HTML: its charset, unseen text, and text in a page's data
        pictures, scans                           pictures of text, and their form for OCR
        markup, values, office, pdf, particulars  XML and feeds; JSON; Office files; PDFs; dates and DOIs
      steering  the ways in which passages try to steer the model             Passage → label
    choosing/
      rank      the passages that matter for the question                    Document → Passage
      choose    ranking by a pool process, and by a model if the settings name one
      embedder  the process with that model, and the queue before it; embedding: the loop inside it
    answering/
      profile   a kind of question as data: the search to run first, and the checks of the answer
      grounding numbered sources and the question as one prompt, in the words of a template   Evidence → GroundedPrompt
      links     removes links that neither the job nor a source gave         str, Evidence → str
      cite      the source of each sentence of the answer                    str, Evidence → Citation
        contradiction, order, clauses   sources that contradict a sentence in its own words; negation: lists of words
      quotes    the source's words that are nearest to a sentence            str, Evidence → Quote
      answer    the checks of an answer, and the notes of its result         str, Evidence, Profile → Answer
    readable    the text of a page's bytes, for other programs                 bytes → str
    standing    checks whether a result's quotes still stand in their sources  Result → CheckedCitation

Every fault of a source becomes a note in the result. A job fails for its sources only if it sets `sources.required` and
no source can be used.
"""
