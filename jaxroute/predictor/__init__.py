"""Output-length buckets from prompts: a DistilBERT in Flax to train, the same in NumPy to serve.

What serves (`service`, `runtime`, `folder`, `tokenizer`, `hint`, `buckets`) does not import jax.
"""
