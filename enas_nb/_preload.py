"What every worker of `nbdev-test` needs, imported once before the fork."
import os

def preload(cells):
    "Import torch and fastai in the parent process and keep each worker on one thread."
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    import torch, fastai.basics
    torch.set_num_threads(1)
