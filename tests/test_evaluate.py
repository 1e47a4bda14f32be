"What is computed from a result: gains, pairs, the rival at equal cost."
import math

import numpy as np, pytest

from enas_nb.evaluate import Findings, Paired, best_by, gain_over, equal_cost, mean_sd, measures, paired_difference, tasks

accuracy, perplexity = measures['accuracy'], measures['perplexity']

def test_a_measure_belongs_to_a_task():
    assert {k: o.measure.name for k,o in tasks.items()}==dict(images='accuracy', text='perplexity')

@pytest.mark.parametrize('p,q,verb', [(.9, .8, 'beat'), (.8, .9, 'lost to'), (.9, .905, 'could not be told from')])
def test_a_gain_in_accuracy_has_the_standard_error_of_the_images(p, q, verb):
    gain = gain_over(accuracy, dict(test_accuracy=p), dict(test_accuracy=q), 1000)
    assert gain.verb==verb and gain.gain==pytest.approx(100*(p-q))
    assert gain.se==pytest.approx(100*math.sqrt((p*(1-p)+q*(1-q))/1000))

def test_a_gain_in_perplexity_has_the_standard_error_of_its_parts():
    noise = [.1*(-1)**i for i in range(64)]
    a, b  = dict(test_perplexity=100., parts=[0.]*64), dict(test_perplexity=101., parts=noise)
    gain  = gain_over(perplexity, a, b, 0)
    assert gain.gain==pytest.approx(math.log(1.01)) and gain.se==pytest.approx(np.std(noise, ddof=1)/8)
    assert gain.verb=='could not be told from'

def test_a_diverged_network_loses():
    a, none = dict(test_perplexity=100., parts=[0.]*64), dict(test_perplexity=None, parts=None)
    for x,y,verb in ((a, none, 'beat'), (none, a, 'lost to'), (none, none, 'could not be compared with')):
        gain = gain_over(perplexity, x, y, 0)
        assert gain.verb==verb and math.isnan(gain.gain) and math.isnan(gain.se)

def test_pairs_leave_out_what_diverged():
    pairs = paired_difference(perplexity, [90., None, 80., 70.], [100., 100., None, 70.])
    assert pairs.n==2 and pairs.mean==pytest.approx(math.log(100/90)/2)
    assert paired_difference(perplexity, [None], [90.])==Paired(None, 0., 0)
    assert paired_difference(accuracy, [.5], [.25])==Paired(.25, 0., 1)

def test_mean_and_sd_of_few():
    assert mean_sd([])==(None, 0.) and mean_sd([3.])==(3., 0.)
    mean, sd = mean_sd([1., 3.])
    assert (mean, sd)==(2., pytest.approx(math.sqrt(2)))

def nets(*valid): return [dict(valid=o, cost=10., name=i) for i,o in enumerate(valid)]

def test_random_search_gets_the_budget_and_chooses_by_validation():
    n, rival = equal_cost(accuracy, nets(.90, .93, .99), 25.)
    assert n==2 and rival['name']==1                                          # the third could not be paid for
    assert equal_cost(accuracy, nets(.90, .93, .99), 30.)[0]==3
    n, rival = equal_cost(accuracy, nets(.90, .93), 5.)
    assert n==1 and rival['name']==0                                          # one at least
    n, rival = equal_cost(accuracy, nets(None, None), 25., chosen=False)
    assert n==1 and rival['name']==0                                          # nothing to choose by
    assert equal_cost(perplexity, nets(None, 90., 80.), 30.)[1]['name']==2    # the lower the better
    assert equal_cost(perplexity, nets(None, None), 30.)[1]['name']==0        # all diverged

def test_the_better_lstm_is_chosen_by_validation():
    lstms  = [dict(valid_perplexity=o, test_perplexity=t, parts=[0.]*64) for o,t in ((None, 50.), (90., 95.), (80., 99.))]
    result = dict(test_perplexity=99., parts=[0.]*64, words=dict(test=9), lstms=lstms)
    found  = Findings(result)
    assert found.measure is perplexity and found.lstm is lstms[2]
    assert Findings({k: v for k,v in result.items() if k!='lstms'}).lstm is None
    assert best_by(perplexity, lstms[:1]*2, 'valid_perplexity') is lstms[0]

def test_findings_compare_sizes():
    assert Findings(dict(child_params=[2, 4], random_params=[1, 1])).size==3
