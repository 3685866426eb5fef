"""Where texts come from: one source a file.

A source has ``Config``, ``VERSION``, ``texts(config, seed) -> Iterator[str]`` (documents, one at a time) and
``digest(config) -> str`` (what identifies the content: it goes into cache keys).
"""
