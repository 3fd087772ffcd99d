"""Plain text, before tokens: n-grams and detokenizers, shared by corpus and evals."""
