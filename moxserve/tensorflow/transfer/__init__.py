"""Transfer learning: what is reused of models that others trained.

`retrain` trains the last layer alone, on features that are computed once (`store` keeps them, `cut` finds them in any
model_fn); `embeddings` reads pretrained word vectors. Warm starts are in `executor.warm_start`.
"""
