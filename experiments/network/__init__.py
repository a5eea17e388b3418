"""Networks trained on data, held against the model."""
