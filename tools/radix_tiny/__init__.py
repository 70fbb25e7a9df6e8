"""How the model that ships with the package was made: text generation, tokenizer, training, evaluation."""
