"""A checkpoint behind OpenAI's endpoints: what waits goes through the model together. Needs the extra `serve`."""
