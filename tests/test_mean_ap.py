"Kinds of error and what mending gains: cases by hand, a slow version of TIDE's rules, and properties that hold for any detections"
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from objdet.mean_ap import (Errors, ap_by_size, count_errors, error_kinds, families, find_errors, mend, mended_ap, plot_errors, plot_pr)
from objdet.score import _iou, matches, mean_ap
from random_sets import sets as any_sets

def box(x, w=10): return [x, 0, x + w, 10]
def dets(*rows): return dict(boxes=[box(x) for x, *_ in rows], scores=[r[1] for r in rows], labels=[r[2] if len(r) > 2 else 0 for r in rows])
def objs(*xs, labels=None, **kw): return dict(boxes=[box(x) for x in xs], labels=labels or [0]*len(xs), **kw)
none = dict(boxes=[], scores=[], labels=[])
family = ['animal', 'animal', 'thing'] # of three classes

# --- kinds, by hand: an object of class 0 at 0, one of class 1 at 100, one of class 2 at 200; IoU of boxes d apart is (10 - d)/(10 + d)

@pytest.mark.parametrize('det, kind, obj', [
    ((0, .9, 0), 'hit', 0), ((4, .9, 0), 'localization', 0), ((8, .9, 0), 'localization', 0), ((9, .9, 0), 'background', -1),
    ((100, .9, 0), 'similar class', 1), ((103, .9, 0), 'similar class', 1), ((200, .9, 0), 'other class', 2), ((0, .9, 2), 'other class', 0),
    ((104, .9, 0), 'class and place', 1), ((204, .9, 0), 'class and place', 2), ((109, .9, 0), 'background', -1), ((50, .9, 0), 'background', -1)])
def test_each_kind(det, kind, obj):
    e = find_errors([dets(det)], [objs(0, 100, 200, labels=[0, 1, 2])], similar=family)
    assert (e.kind[0], e.object[0]) == (kind, obj)
    speaks = kind in ('hit', *error_kinds[:3])
    assert e.missed.tolist() == [[0, j] for j in range(3) if not (speaks and j == obj)]

def test_found_again_is_a_duplicate():
    e = find_errors([dets((0, .9), (1, .8), (0, .7))], [objs(0)])
    assert e.kind.tolist() == ['hit', 'duplicate', 'duplicate'] and e.object.tolist() == [0, 0, 0] and len(e.missed) == 0

def test_the_first_rule_that_fits_decides():
    "TIDE's order: a poor box of its class before another class, another class before a duplicate"
    both = objs(0, 5, labels=[0, 1])
    assert find_errors([dets((5, .9, 0))], [both]).kind[0] == 'localization'
    e = find_errors([dets((0, .9, 0), (1, .8, 0))], [objs(0, 0, labels=[0, 1])])
    assert e.kind.tolist() == ['hit', 'other class']

def test_bounds_belong_to_localization_below_and_to_hits_above():
    half, tenth = dict(boxes=[box(0, 5)], scores=[.9], labels=[0]), dict(boxes=[box(0, 1)], scores=[.9], labels=[0])
    assert find_errors([half], [objs(0)]).kind[0] == 'hit' and find_errors([tenth], [objs(0)]).kind[0] == 'localization'
    assert find_errors([half], [objs(0)], iou=.6).kind[0] == 'localization'
    assert find_errors([tenth], [objs(0)], background=.2).kind[0] == 'background'

def test_difficult_objects_are_struck_and_never_missed():
    e = find_errors([dets((0, .9), (5, .8))], [objs(0, 50, difficult=[True, True])])
    assert e.kind.tolist() == ['struck', 'localization'] and len(e.missed) == 0
    after = mend([dets((0, .9), (5, .8))], [objs(0, 50, difficult=[True, True])], e, ['localization'])
    assert matches(*after).struck.all(), 'a poor box of a difficult object, mended, counts neither way'

def test_class_of_no_family_given():
    assert find_errors([dets((100, .9, 0))], [objs(100, labels=[1])]).kind[0] == 'other class'
    assert families(['cow', 'dog', 'train', 'sofa', 'anchor', 'unheard of']) == ['animal', 'animal', 'vehicle', 'indoor', 'travel', 'unheard of']

def test_nothing_there():
    "Pitfalls 2 and 4: empty pictures on either side"
    e = find_errors([none, dets((0, .9)), none], [objs(0), dict(boxes=[], labels=[]), dict(boxes=[], labels=[])])
    assert e.kind.tolist() == ['background'] and e.picture.tolist() == [1] and e.missed.tolist() == [[0, 0]]
    e = find_errors([none], [dict(boxes=[], labels=[])])
    assert sum(count_errors(e, [dict(boxes=[], labels=[])]).values()) == 0 and mend([none], [dict(boxes=[], labels=[])], e, error_kinds)[0][0]['boxes'].shape == (0, 4)

def test_what_it_takes():
    p, t = dets((0, .9), (25, .5)), objs(0, 20)
    for f in (np.array, torch.tensor):
        a, b = ({k: f(v) for k, v in d.items()} for d in (p, t))
        assert find_errors([a], [b]).kind.tolist() == ['hit', 'localization'] and mended_ap([a], [b], method='area')['localization'] == 1
    with pytest.raises(ValueError, match='background 0.5, expected'): find_errors([p], [t], background=.5)
    with pytest.raises(ValueError, match=r"kinds \['box'\], expected some of"): mend([p], [t], find_errors([p], [t]), ['box'])
    with pytest.raises(ValueError, match='1 predictions for 2'): find_errors([p], [t, t])
    with pytest.raises(ValueError, match='labels 1: expected 0 to 0'): find_errors([dets((0, .9, 1))], [t], similar=['animal'])

# --- mending, by hand

def gains(p, t, **kw):
    "mAP by area, now and with each kind mended, kinds without effect left out"
    now = mean_ap([p], [t], method='area').map
    return now, {k: v for k, v in mended_ap([p], [t], method='area', **kw).items() if v != pytest.approx(now)}

@pytest.mark.parametrize('p, t, now, after', [
    (dets((5, .9), (20, .8)), objs(0, 20), 1/4, dict(localization=1)),
    (dets((0, .9), (1, .8), (20, .7)), objs(0, 20), 5/6, dict(duplicate=1)),
    (dets((90, .9), (0, .8)), objs(0), 1/2, dict(background=1)),
    (dets((0, .9)), objs(0, 20), 1/2, dict(missed=1)),
    (dets((25, .9), (0, .8)), objs(0, 20, labels=[0, 1]), 1/4, {'class and place': 1/2, 'missed': 1/2}),
    (dets((20, .9), (0, .8)), objs(0, 20, labels=[0, 1]), 1/4, {'similar class': 1})])
def test_what_mending_gains(p, t, now, after):
    was, gained = gains(p, t, similar=['animal', 'animal'])
    assert was == pytest.approx(now) and gained == pytest.approx(after)

def test_a_mended_box_does_not_take_an_object_from_its_hit():
    "As TIDE: the poor box at 0.9 goes where the object has a hit, if at a lower score; of two for one object the surest stays"
    p, t = dets((5, .9), (0, .5)), objs(0)
    after = mend([p], [t], find_errors([p], [t]), ['localization'])[0][0]
    assert after['boxes'].tolist() == [box(0)] and after['scores'].tolist() == [.5]
    p = dets((4, .3), (5, .9), (6, .4))
    after = mend([p], [t], find_errors([p], [t]), ['localization'])[0][0]
    assert after['boxes'].tolist() == [box(0)] and after['scores'].tolist() == pytest.approx([.9])

def test_counts_among_the_surest():
    "A struck detection takes no place; each class has its own number"
    p, t = dets((0, .9), (50, .8), (90, .7), (95, .6), (0, .5, 1), (300, .4, 1)), objs(0, 50, difficult=[True, False])
    e = find_errors([p], [t])
    def count(kind, top=None): return count_errors(e, [t], top)[kind]
    assert count('background') == 3 and count('other class') == 1
    assert count('background', [2, 1]) == 1 and count('other class', [2, 1]) == 1
    assert count('background', [0, 0]) == 0

def test_missed_are_counted_over_the_same_detections_as_the_rest():
    "The other kinds over the top, the objects missed over the whole list: then what is missed in the top looks found"
    p, t = dets((90, .9), (0, .8), (24, .7), (40, .6, 1)), objs(0, 20, 40, 60, difficult=[False, False, False, True])
    e = find_errors([p], [t])
    assert e.kind.tolist() == ['background', 'hit', 'localization', 'other class'] and len(e.missed) == 0
    assert [count_errors(e, [t], top)['missed'] for top in ([0, 0], [1, 0], [2, 0], [2, 1], [3, 1], None)] == [3, 3, 2, 1, 0, 0]

# --- against a slow version, and properties

def sets(): return any_sets(n_classes=3, apart=True) # two objects on the very same spot cannot both be mended

def slow_kind(b, label, t):
    "TIDE's rules for one miss, one object after the other"
    near = [(_iou(b, o), l == label, family[l] == family[label]) for o, l in zip(t['boxes'], t['labels'])]
    own, other = max((v for v, same, _ in near if same), default=0), max((v for v, same, _ in near if not same), default=0)
    if .1 <= own < .5: return {'localization'}
    if other >= .5: return {'similar class' if akin else 'other class' for v, same, akin in near if v == other and not same}
    if own >= .5: return {'duplicate'}
    return {'class and place' if other > .1 else 'background'}

@settings(max_examples=80, deadline=None)
@given(sets())
def test_kinds_are_those_of_the_slow_version(set_):
    p, t = set_
    e, m = find_errors(p, t, similar=family), matches(p, t, n_classes=3)
    assert isinstance(e, Errors) and ((e.kind == 'hit') == (m.object >= 0)).all() and ((e.kind == 'struck') == m.struck).all()
    for i, place, label, kind in zip(e.picture, e.place, e.label, e.kind):
        if kind not in ('hit', 'struck'): assert kind in slow_kind(p[i]['boxes'][place], label, t[i])
    assert sum(count_errors(e, t).values()) == (~np.isin(e.kind, ('hit', 'struck'))).sum() + len(e.missed)

@settings(max_examples=80, deadline=None)
@given(sets(), st.sampled_from(['11point', 'area', '101point']))
def test_all_mended_is_perfect_and_input_is_left_alone(set_, method):
    "Fails if a mistake falls between the kinds, or if a mended detection becomes a duplicate"
    p, t = set_
    before = repr(set_)
    e = find_errors(p, t, similar=family, method=method)
    after = mean_ap(*mend(p, t, e, error_kinds), method=method, n_classes=3)
    assert repr(set_) == before
    assert np.isin(np.nan_to_num(after.ap, nan=1), [1]).all()
    same = mean_ap(*mend(p, t, e, []), method=method, n_classes=3)
    np.testing.assert_array_equal(same.ap, mean_ap(p, t, method=method, n_classes=3).ap)

@settings(max_examples=40, deadline=None)
@given(sets())
def test_mending_one_kind_never_hurts(set_):
    "Class by class; classes that it leaves without objects aside. (A name set right may lift one class only)"
    p, t = set_
    e, now = find_errors(p, t, similar=family), mean_ap(p, t, method='area', n_classes=3).ap
    for k in error_kinds:
        after = mean_ap(*mend(p, t, e, [k]), method='area', n_classes=3).ap
        if k not in ('similar class', 'other class', 'localization'): assert (np.isnan(after) | np.isnan(now) | (after >= now - 1e-9)).all(), k

# --- sizes and pictures

def test_ap_by_size_asks_for_each_object_once():
    rng = np.random.default_rng(0)
    wh = rng.uniform(5, 60, (40, 2))
    t = [dict(boxes=np.hstack([np.zeros((20, 2)), w]), labels=rng.integers(0, 2, 20), difficult=rng.random(20) < .2) for w in np.split(wh, 2)]
    p = [dict(boxes=o['boxes'], scores=rng.random(20), labels=o['labels']) for o in t]
    by_size = ap_by_size(p, t, n_classes=2)
    n = [o.n_positives.sum() for o in by_size.values()]
    assert sum(n) == mean_ap(p, t, n_classes=2).n_positives.sum() and max(n) - min(n) <= 1
    assert list(ap_by_size(p, t, edges=[10, 30])) == ['up to 10', '10 to 30', 'over 30']

def test_an_object_of_an_edge_s_size_is_asked_for_once():
    "Four objects, of which two lie on the edges, counted six times"
    t = [dict(boxes=[[0, 0, s, s] for s in (10, 20, 30, 40)], labels=[0]*4, difficult=None)]
    p = [dict(boxes=t[0]['boxes'], scores=[.9]*4, labels=[0]*4)]
    assert [o.n_positives.sum() for o in ap_by_size(p, t).values()] == [2, 1, 1] # the thirds end at 20 and at 30
    assert [o.n_positives.sum() for o in ap_by_size(p, t, edges=[10, 40]).values()] == [1, 3, 0]

def test_sizes_of_nothing_are_refused():
    for t in [], [dict(boxes=[], labels=[])], [objs(0, difficult=[True])]:
        with pytest.raises(ValueError, match='no objects to take sizes from|no pictures to score'): ap_by_size([none]*len(t), t)

def test_names_that_are_too_few_or_many_are_refused():
    r = mean_ap([dets((0, .9))], [objs(0)], n_classes=2)
    for names in ['cat'], ['cat', 'dog', 'cow']:
        with pytest.raises(ValueError, match=f'{len(names)} names for 2 classes'): plot_pr(r, names)

def test_plots_show_what_they_are_given():
    import matplotlib
    matplotlib.use('agg')
    r = mean_ap([dets((0, .9), (90, .8), (0, .7, 1))], [objs(0, 20, labels=[0, 0])], n_classes=3)
    ax = plot_pr(r, ['cat', 'dog', 'cow'])
    assert [o.get_text() for o in ax.get_legend().texts] == ['cat 0.55'] and len(ax.lines) == 4
    empty = plot_pr(mean_ap([none], [dict(boxes=[], labels=[])], n_classes=2), ['cat', 'dog'])
    assert empty.get_legend() is None
    bars = plot_errors(dict(localization=3, missed=1))
    assert [o.get_width() for o in bars.patches] == [3, 1] and [o.get_text() for o in bars.get_yticklabels()] == ['localization', 'missed']
    matplotlib.pyplot.close('all')
