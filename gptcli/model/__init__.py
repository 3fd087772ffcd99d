"""The GPT transformer in plain single-device PyTorch; `config`, `hf` and `source` import no
torch.
"""
