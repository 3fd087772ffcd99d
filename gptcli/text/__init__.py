"""Text before it becomes tokens: n-grams and detokenizers, shared by corpus and evals."""
