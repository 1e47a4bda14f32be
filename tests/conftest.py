import pytest, torch

@pytest.fixture
def plain_lstm_cell(monkeypatch):
    "torch's fused LSTM cell cannot run on fake tensors of an accelerator when it has no biases: spell it out."
    def cell(x, hc, w_ih, w_hh, b_ih=None, b_hh=None):
        i,f,g,o = (x@w_ih.T + hc[0]@w_hh.T).chunk(4, 1)
        c = f.sigmoid()*hc[1] + i.sigmoid()*g.tanh()
        return o.sigmoid()*c.tanh(), c
    monkeypatch.setattr(torch, 'lstm_cell', cell)
