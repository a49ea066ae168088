"""Keys of the model card's facts that tie a model to its data; scoring checks them against the workspace."""

# Digest of the model's token ids (`sequences.vocabulary.vocabulary_digest`), and the instant (ISO 8601) from which on
# the model has seen no data; and the part of the configuration that the model was trained for
# (`config.definition.model_definition`).
VOCABULARY, TEST_START, DEFINITION = "vocabulary_sha256", "test_start", "definition"
