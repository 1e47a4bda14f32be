"Words follow the numbers; committed reports follow from their results."
import json
from pathlib import Path

import pytest, torch

from enas_nb.evaluate import measures
from enas_nb.report import paired, plain, plot_retrained, report, show, verdict

RESULTS = Path(__file__).parents[1]/'nbs/tutorials/results'

def result(p, q, n=1000):
    return dict(images=dict(test=n), test_accuracy=p, equal_cost_rival=dict(test_accuracy=q), policy_shared_accuracy=.9, uniform_shared_accuracy=.5)

@pytest.mark.parametrize('p,q,words', [(.9, .8, 'beat'), (.8, .9, 'lost to'), (.9, .905, 'could not be told from')])
def test_the_verdict_follows_the_numbers(p, q, words): assert words in verdict(result(p, q)) and f'{p:.1%} against {q:.1%}' in verdict(result(p, q))

def texts(a, b, c):
    parts = lambda ppl: [torch.tensor(ppl).log().item()+.01*(i%2) for i in range(64)]
    net = lambda ppl, noise=0: dict(test_perplexity=ppl, valid_perplexity=ppl, parts=[o+noise*(-1)**i for i,o in enumerate(parts(ppl))])
    return net(a) | dict(words=dict(test=1000), equal_cost_rival=net(b, .1), lstms=[net(c, .1)], policy_shared_perplexity=200., uniform_shared_perplexity=300.)

@pytest.mark.parametrize('a,b,words', [(100., 120., 'beat random'), (120., 100., 'lost to random'), (100., 101., 'could not be told from random')])
def test_the_verdict_on_text_follows_the_numbers(a, b, words):
    text = verdict(texts(a, b, 90.))
    assert words in text and f'{a:.1f} against {b:.1f} on 1,000 test words' in text and 'lost to an LSTM' in text and '200.0 against 300.0' in text

def diverged(d, *which):
    for o in which: o.update(test_perplexity=None, valid_perplexity=None, parts=None)
    return d

def test_a_diverged_network_loses():
    d = texts(100., 90., 80.)
    text = verdict(diverged(d, d['equal_cost_rival']))
    assert 'ENAS beat random' in text and '100.0 against none, it diverged' in text and 'where one diverged' in text
    d = texts(100., 90., 80.)
    assert 'ENAS lost to random' in verdict(diverged(d, d))
    d = texts(100., 90., 80.)
    assert 'lost to an LSTM' in verdict(diverged(d, d['lstms'][0]) | dict(lstms=[*d['lstms'], texts(1, 1, 70.)['lstms'][0]]))

def test_a_gain_in_perplexity_is_in_nats():
    assert 'a gain of +0.010 ± 0.013 nats a word' in verdict(texts(100., 101., 90.)) # sd of ±.1 over 64 parts is .1008, /8

def test_numbers_of_a_measure():
    accuracy, perplexity = measures['accuracy'], measures['perplexity']
    assert show(accuracy, .98765)=='98.77%' and show(accuracy, .98765, short=True)=='98.8%'
    assert show(perplexity, 99.94)=='99.9' and show(perplexity, None)=='none, it diverged'

@pytest.mark.parametrize('folder', sorted(o.parent for o in RESULTS.glob('*/result.json')), ids=lambda o: o.name)
def test_committed_reports_follow_from_their_results(folder):
    assert report(json.loads((folder/'result.json').read_text()))==(folder/'report.md').read_text()

@pytest.mark.parametrize('mean,words', [(-.0093, '0.93 points worse (standard error 0.50'), (.0093, '0.93 points better (standard error 0.50')])
def test_a_pair_that_lost_is_worse_and_not_minus_better(mean, words):
    d = committed('digits-macro-seed0')
    d['paired_difference'] = dict(mean=mean, se=.005, n=3)
    assert words in paired(d) and '-' not in paired(d)

@pytest.mark.parametrize('recipe,how', [(dict(name='digits-macro', data='digits_dls'), '`enas-train arch.json digits-macro`'),
                                        (dict(name='digits-macro', data='folder_dls'), '`enas-train arch.json digits-macro --images FOLDER`'),
                                        (dict(name='text-small', data='file_dls'), '`enas-train arch.json text-small --text PATH`'),
                                        (dict(name='mine', data='digits_dls'), "`arch_learner(dls, load_arch('arch.json'))`")])
def test_a_report_says_how_to_keep_what_was_found(recipe, how):
    d = committed('digits-macro-seed0')
    assert f'In this folder {how} trains it' in report(d | dict(recipe=d['recipe']|recipe))

def committed(name): return json.loads((RESULTS/name/'result.json').read_text())

def test_a_report_counts_what_diverged_in_a_committed_run():
    d = committed('text-small')
    d['child_test_perplexity'] = [None, *d['child_test_perplexity'][1:]]
    d['random_test_perplexity'] = [None]*len(d['random_test_perplexity'])
    d = d | dict(random_mean=None, paired_difference=dict(mean=None, se=0., n=0))
    text = report(d)
    assert 'on average, 1 diverged' in text and f"on average, {len(d['random_archs'])} diverged" in text
    assert 'in every such pair one diverged' in paired(d) and 'nan' not in text
    assert len(plot_retrained(d).axes[0].get_yticks())==4

def test_a_width_that_nobody_set_is_not_reported():
    d = committed('digits-macro-seed0')
    assert 'shared weights (width 12, batches of 64)' in report(d) and '14 epochs, width 8.' in report(d)
    for part in ('search', 'final'): d['recipe']['preset'][part]['width'] = None
    assert 'shared weights (batches of 64)' in report(d) and '14 epochs. ' in report(d) and 'None' not in report(d)
    d['recipe']['sizes']['width'] = 6
    assert 'shared weights (width 6, batches of 64)' in report(d) and '14 epochs, width 6.' in report(d)

def changed(d, controller={}, **search):
    "A committed result with another preset."
    d = json.loads(json.dumps(d))
    d['recipe']['preset']['search'].update(search); d['recipe']['preset']['controller'].update(controller)
    return d

def run_of(d): return report(d).split('## What was run')[1].split('![')[0].replace('\n', ' ')

def test_a_report_says_who_trained_the_weights_and_when_the_policy_moved():
    d = changed(committed('digits-micro-seed0'), dict(warmup=0), T_0=12) # of a version without these settings
    assert "trained by the policy's architectures; after each 15 steps of the policy with 5 architectures" in run_of(d) and 'The reward was the accuracy.' in run_of(d)
    text = run_of(changed(d, dict(warmup=None, steps=17, credit='rank'), paths='fair', reward='loss', reward_bs=500, n_omega=3))
    assert 'each choice of a decision is equally frequent; at the end, on frozen weights, 204 steps of the policy' in text # 12 epochs
    assert 'The reward was minus the loss, and its rank in the step moved θ; scores are means over the weights of the last 3 epochs.' in text
    assert '199 validation images' in text # half of 397 and not 500
    text = run_of(changed(d, dict(warmup=4), paths=[['uniform', .25], ['policy', .75]]))
    assert "25% of them trained by uniformly random architectures, 75% of them trained by the policy's architectures; after each, from epoch 5 on, 15 steps" in text
    assert 'θ, deriving and every shared accuracy used all validation images' in run_of(changed(d, same_valid=True))
    cells = committed('text-small')
    assert 'The reward was 80/perplexity.' in run_of(cells) and 'nan' not in run_of(cells) and 'image' not in run_of(changed(cells, paths='fair'))

def test_the_favourites_of_a_policy_that_trained_no_weights_got_no_training():
    d = committed('digits-micro-seed0') | dict(policy_shared_accuracy=.9, uniform_shared_accuracy=.5)
    assert 'its favourites got the training' in verdict(d)
    for paths in ('fair', 'uniform', [['fair', .5], ['uniform', .5]]):
        assert 'favourites' not in verdict(changed(d, paths=paths)) and 'is no proof' in verdict(changed(d, paths=paths))
    assert 'its favourites got the training' in verdict(changed(d, paths=[['fair', .5], ['policy', .5]]))

@pytest.mark.parametrize('entropy,words', [(9.6, 'The policy has hardly moved: after 204 steps its entropy is 9.60 of at most 10.00 nats'), (.05, 'The policy has collapsed: after 204 steps its'), (5., '')])
def test_a_policy_that_moved_at_the_end_is_judged_by_its_last_steps(entropy, words):
    d = committed('digits-macro-seed0') | dict(policy=dict(steps=204, entropy=entropy, max_entropy=10.))
    assert verdict(d).startswith(words or 'In this one run') and 'The policy was never trained' in verdict(d | dict(policy=dict(steps=0, entropy=None, max_entropy=10.)))

def test_a_report_escapes_what_was_typed():
    "A text, or a folder of images, may be named anything."
    d = committed('digits-macro-seed0')
    bad = '<img src=x onerror=alert(1)>.txt `rm` ![a](b) |*x*\n# y & z'
    d['recipe'] |= dict(name=bad, about=bad)
    text = report(d)
    assert '<img' not in text and text.count(plain(bad))==2 and '\n# y' not in text
    assert plain(bad)=='&lt;img src=x onerror=alert(1)&gt;.txt \\`rm\\` !\\[a\\](b) \\|\\*x\\* # y &amp; z'
    assert plain("scikit-learn's 8x8 digits, 6 layers: 2,000 words_of (mine)")=="scikit-learn's 8x8 digits, 6 layers: 2,000 words_of (mine)"

def test_a_report_of_more_architectures_than_a_float():
    d = committed('digits-macro-seed0') | dict(n_archs=6**50*2**1225)
    assert '4.67e+407 possible architectures' in report(d)
