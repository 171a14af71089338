"""An OpenAI-compatible server over the engine, and a page to try it.

Read in this order: `protocol` and `chat` (bodies to requests and back), `media` (items of a body), `worker` (the thread
that owns the engine), `app` (routes), `command`.
"""
