"Detections and objects for hypothesis, used by the tests of scoring and of error kinds"
from hypothesis import strategies as st

@st.composite
def sets(draw, n_classes=2, apart=False):
    """A few pictures on a coarse grid, so that overlaps and scores are often equal; a quarter of the objects are crowd regions, most larger than the others.
    `apart`: no two objects of a picture on the very same spot"""
    place, side = st.integers(0, 4), st.integers(1, 5)
    def some(kind, n): return draw(st.lists(kind, min_size=n, max_size=n))
    def boxes(n): return [[x, y, x + w, y + h] for x, y, w, h in some(st.tuples(place, place, side, side), n)]
    p, t = [], []
    for _ in range(draw(st.integers(1, 4))):
        objs, n, label = boxes(draw(st.integers(0, 5))), draw(st.integers(0, 8)), st.integers(0, n_classes - 1)
        crowd = some(st.sampled_from([False, False, False, True]), len(objs))
        objs = [[*o[:2], o[2] + 4*c, o[3] + 4*c] for o, c in zip(objs, crowd)]
        if apart: objs, crowd = [o for i, o in enumerate(objs) if o not in objs[:i]], [c for i, c in enumerate(crowd) if objs[i] not in objs[:i]]
        p.append(dict(boxes=boxes(n), scores=some(st.sampled_from([.1, .5, .9]), n), labels=some(label, n)))
        t.append(dict(boxes=objs, labels=some(label, len(objs)), difficult=some(st.booleans(), len(objs)), crowd=crowd))
    return p, t
