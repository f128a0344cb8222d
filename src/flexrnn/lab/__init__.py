"""The laboratory: compare cells with `torch.nn.LSTM`, for what they compute, cost and learn.

An optional part, installed by `pip install flexrnn[lab]`; the library itself never imports it.
"""
