"""Text generation: prefill and decode, sampling parameters, beam search, streaming."""
