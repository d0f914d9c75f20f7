"""Turns a job's sources into numbered evidence before its question, and finds the source of each sentence of an answer.

A job's sources pass through the steps in this list, from top to bottom. The types on the right are those that a step
takes and returns, so a signature shows which steps come before it.

    enrich      one job's way through all steps, under one budget            Sources → Evidence
    search/     providers that turn a query into links or abstracts         str → Found
      words     the question in a prompt, and its search words              str → str
    fetching/
      read      one URL, from the cache or fetched and read                  str → Reading
      fetch     one URL, redirect by redirect, behind the egress guard       str → Page
      robots    the paths that a site's robots.txt allows
      attached  the images and the payload of a job; s3: payloads in the operator's buckets
    rendering/  a page that a script fills, as the operator's browser shows it   Page → Page
      renderer  which pages are rendered, and from where these may load
      visit     one page in the browser, whose requests the worker answers
    cache/      readings: in memory, in Redis, in a file
    turns       fair shares of connections and processes, among tenants and among a tenant's jobs
    processes/
      pool      the processes that parse bytes of pages; the worker may kill them
      ocr       the process that starts tesseract; tesseract: the program and its fences
      member    the loop of a pool process; `workers.processes` has its pipes and its fences
    reading/
      extract   bytes to the text that a person would see, by media type      Page → Document
        charset, hidden, by_trafilatura    HTML: its charset, its unseen text, its main text
        pictures, scans                    pictures of text, and their form for OCR
        data, office, pdf, particulars     JSON, XML and feeds; Office files; PDFs; dates and DOIs
      steering  the ways in which passages try to steer the model             Passage → label
    choosing/
      rank      the passages that matter for the question                    Document → Passage
      choose    ranking by a pool process, and by a model if the settings name one
      embedder  the process with that model, which jobs share by turns; embedding: the loop inside it
    answering/
      profile   a kind of question as data: the search to run first, and the checks of the answer
      grounding numbered sources and the question as one prompt, in the words of a template   Evidence → GroundedPrompt
      links     removes links that neither the job nor a source gave         str, Evidence → str
      citations the citations of an answer, the support of its sentences, its checks and notes   str, Evidence → Answer
        judging the rules, and a cross-encoder as judge; entailment: the cross-encoder's process
        sentences, quantities, names, quotes   the parts of a text that the rules compare
    standing    checks whether a result's quotes still stand in their sources  Result → CheckedCitation

Every fault of a source becomes a note in the result. A job fails for its sources only if it sets `sources.required` and
no source can be used.
"""
