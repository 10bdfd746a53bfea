"""A checkpoint behind OpenAI's endpoints: what waits goes through the model together.

`app` and `server` need the extra `serve`.
"""
