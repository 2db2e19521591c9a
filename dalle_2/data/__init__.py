"""Pictures, captions and their embeddings as batches. Knows no model."""
