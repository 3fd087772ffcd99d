"""The GPT transformer: plain single-device PyTorch that reads like the papers. `config` needs no
torch.
"""
