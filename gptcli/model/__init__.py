"""The GPT transformer in plain single-device PyTorch; `config`, `hf_config` and `source` import no
torch.
"""
