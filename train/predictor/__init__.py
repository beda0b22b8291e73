"""Training of the output-length predictor: prompts in, a predictor folder out.

`config` says what there is to choose, `data` makes batches, `network` the weights to start from, `step` is one update,
`training` the loop over them, `result` what is written at the end.

Axis letters: N rows, R rows of a batch, L token positions, F numeric features, D units, B length buckets, K tasks.
"""
