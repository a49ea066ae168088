"""What ties a model to where it was trained: facts of its card that whoever asks it holds against their workspace."""

# Names of the facts: `sequences.vocabulary.vocabulary_digest` of the model's ids, and the instant (ISO 8601) from which
# on the model has seen nothing.
VOCABULARY, TEST_START = "vocabulary_sha256", "test_start"
