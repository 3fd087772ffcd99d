"""HTTP server: OpenAI's completions API and a page to try a model, on the decode loop of
`sampling`.
"""
