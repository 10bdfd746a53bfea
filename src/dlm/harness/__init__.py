"""lm-evaluation-harness: the model `dlm` for it, and what `dlm lm-eval` runs. The only room that imports lm_eval.

Importing `dlm.harness.model` registers the model; `python -m dlm.harness` is lm-eval's own command line with it.
"""
