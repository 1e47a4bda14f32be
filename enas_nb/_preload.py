"What nbdev is given: imports that every worker of `nbdev-test` needs, and how the site writes names."
import os, re

def preload(cells):
    "Import torch and fastai in the parent process and keep each worker on one thread."
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    import torch, fastai.basics
    torch.set_num_threads(1)

class SiteNames:
    "A processor of the site's pages: how they write and link names."
    def __init__(self, nb): self.nb = nb
    def end(self):
        "Names stand alone, and one that its page does not document, such as a private one, is no link to it."
        docs = [o['data'] for c in self.nb.cells if 'show_doc(' in c.source for o in c.get('outputs', [])]
        for data in docs: data.update({k: ''.join(v).replace('__main__.', '') for k,v in data.items()}) # where nbdev ran them
        known = {o.lower() for data in docs for o in re.findall('^### (.+)$', data['text/markdown'], re.M)}
        here  = re.compile(r'\[(`[^`]+`)\]\(https?://[^)#]*/' + re.escape(self.nb.frontmatter_['output-file']) + r'#([^)]+)\)')
        def live(md): return here.sub(lambda m: m[0] if m[2] in known else m[1], md)
        for data in docs: data['text/markdown'] = live(data['text/markdown'])
        for c in self.nb.cells:
            if c.cell_type=='markdown': c.source = live(c.source)
