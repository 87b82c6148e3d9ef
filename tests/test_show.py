"Drawing: boxes where they belong, nothing drawn for nothing, clear errors. Run: pytest tests/test_show.py"
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from matplotlib.colors import to_rgb
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F
from objdet.show import (class_color, denormalize, draw_outline, draw_rect, draw_text, grid, normalize, palette,
                         show_boxes, show_img)

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

def picture(h=40, w=60): return np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)

def drawn(ax): return [(*p.get_xy(), p.get_width(), p.get_height()) for p in ax.patches]

def texts(ax): return [t.get_text() for t in ax.texts]

@pytest.mark.parametrize('form', ['array', 'pil', 'tensor', 'tv', 'float', 'float array', 'bfloat16', 'grad'])
def test_every_kind_of_picture_shows_the_same_pixels(form):
    im = picture()
    x = torch.from_numpy(im).permute(2, 0, 1)
    forms = {'array': im, 'pil': Image.fromarray(im), 'tensor': x, 'tv': tv_tensors.Image(x),
             'float': x / 255, 'float array': im / 255, 'bfloat16': (x / 255).bfloat16(),
             'grad': (x / 255).requires_grad_()}
    a = np.asarray(show_img(forms[form]).images[0].get_array())
    np.testing.assert_allclose(a if a.dtype != np.uint8 else a / 255, im / 255, atol=1/256)

@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', '1'])
def test_every_mode_of_pil_shows_in_color(mode):
    "A palette picture holds indices, not colors; VOC's masks are such"
    im = Image.fromarray(picture()).convert(mode)
    a = np.asarray(show_img(im).images[0].get_array())
    np.testing.assert_array_equal(a, np.asarray(im.convert('RGB')))

def test_picture_covers_whole_pixels():
    "A half-open box of the whole picture lies on its frame (pitfall 5: no half pixel, no off by one)"
    ax = show_img(picture(40, 60))
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 60), (40, 0))
    assert tuple(ax.images[0].get_extent()) == (0, 60, 40, 0)
    fig = ax.figure
    fig.canvas.draw()
    rect, frame = draw_rect(ax, (0, 0, 60, 40)).get_window_extent(), ax.get_window_extent()
    np.testing.assert_allclose(rect.extents, frame.extents, atol=1e-6)

def test_rendered_box_surrounds_its_pixels():
    "Drawn on a canvas, the line lies around the bright object and leaves its inside as it was"
    im = np.zeros((40, 60, 3), np.uint8)
    im[10:20, 30:50] = [0, 0, 255]
    fig = plt.figure(figsize=(6, 4), dpi=100)
    ax = fig.add_axes((0, 0, 1, 1))
    show_boxes(im, [[30, 10, 50, 20]], ax=ax, colors='red', lw=1)
    fig.canvas.draw()
    shot = np.asarray(fig.canvas.buffer_rgba())[..., :3].astype(int)
    ys, xs = np.nonzero((shot[..., 0] > 200) & (shot[..., 2] < 100))
    assert (xs.min(), xs.max()) == pytest.approx((300, 500), abs=2)
    assert (ys.min(), ys.max()) == pytest.approx((100, 200), abs=2)
    assert (shot[110:190, 310:490] == [0, 0, 255]).all()

@pytest.mark.parametrize('bad, text', [
    (lambda x: x[None], 'a batch'), (lambda x: x.permute(1, 2, 0), r'expected \(3, h, w\)'),
    (lambda x: x.numpy(), r'expected \(h, w, 3\)'), (lambda x: normalize(x / 255), 'denormalize'),
    (lambda x: x.float(), 'divide by 255'), (lambda x: x.int(), 'expected uint8'),
    (lambda x: torch.full((3, 4, 4), float('nan')), 'nan'), (lambda x: 'car.jpg', 'car.jpg'),
    (lambda x: None, 'None is no'),
    (lambda x: torch.zeros(3, 0, 4), 'no picture'), (lambda x: torch.zeros(4), 'no picture')])
def test_what_is_no_picture_says_why(bad, text):
    with pytest.raises((ValueError, TypeError), match=text): show_img(bad(torch.from_numpy(picture()).permute(2, 0, 1)))
    assert not plt.get_fignums(), 'an empty figure was left behind'

def test_normalize_agrees_with_torchvision():
    x = torch.rand(2, 3, 5, 7)
    expected = F.normalize(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(normalize(x), expected)
    torch.testing.assert_close(denormalize(expected), x)
    assert normalize(x.double()).dtype == torch.float64

def test_normalize_refuses_whole_numbers_and_other_shapes():
    with pytest.raises(TypeError, match='divide by 255'): normalize(torch.zeros(3, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r'\(2, 2, 3\)'): normalize(torch.zeros(2, 2, 3))

@pytest.mark.parametrize('none', [None, [], (), torch.zeros(0), torch.zeros(0, 4), np.zeros((0, 4)),
                                  tv_tensors.BoundingBoxes(torch.zeros(0, 4), format='XYXY', canvas_size=(40, 60))])
def test_nothing_detected_is_drawn_as_the_picture(none):
    "Pitfall 4"
    empty = torch.zeros(0)
    for kwargs in {}, dict(labels=[], scores=[], classes=['a']), dict(labels=empty.long(), scores=empty):
        ax = show_boxes(picture(), none, **kwargs)
        assert len(ax.images) == 1 and not drawn(ax) and not texts(ax)

def test_padding_and_background_are_left_out():
    "Pitfall 14: background is the last, len(classes)"
    boxes = torch.tensor([[1, 2, 11, 22], [0, 0, 60, 40], [0, 0, 0, 0]])
    ax = show_boxes(picture(), boxes, labels=torch.tensor([1, 2, -1]), classes=['cat', 'dog'])
    assert drawn(ax) == [(1, 2, 10, 20)] and texts(ax) == ['dog']

@pytest.mark.parametrize('make', [np.array, torch.tensor, list, lambda b: [torch.tensor(x) for x in b],
                                  lambda b: torch.tensor(b).bfloat16(),
                                  lambda b: tv_tensors.BoundingBoxes(b, format='XYXY', canvas_size=(40, 60))])
def test_boxes_of_every_kind(make):
    assert drawn(show_boxes(picture(), make([[1, 2, 11, 22], [4, 4, 8, 6]]))) == [(1, 2, 10, 20), (4, 4, 4, 2)]

def test_scores_names_threshold_and_colors():
    boxes, labels, scores = [[1, 2, 11, 22], [4, 4, 8, 6], [0, 0, 5, 5]], [0, 1, 1], [0.871, 0.3, 0.1]
    ax = show_boxes(picture(), boxes, labels, scores, ['cat', 'dog'], thresh=0.3)
    assert texts(ax) == ['cat 0.87', 'dog 0.30']
    assert [to_rgb(p.get_edgecolor()) for p in ax.patches] == [to_rgb(class_color(0)), to_rgb(class_color(1))]
    assert texts(show_boxes(picture(), boxes, labels)) == ['0', '1', '1']
    assert texts(show_boxes(picture(), boxes, scores=scores)) == ['0.87', '0.30', '0.10']
    ax = show_boxes(picture(), boxes, labels, colors=(1, 0, 0))
    assert {to_rgb(p.get_edgecolor()) for p in ax.patches} == {(1, 0, 0)}
    ax = show_boxes(picture(), boxes, labels, colors=['red', 'tan', 'blue'])
    assert [to_rgb(p.get_edgecolor()) for p in ax.patches] == [to_rgb(c) for c in ('red', 'tan', 'blue')]

@pytest.mark.parametrize('args, kwargs, text', [
    (([[0, 0, 1, 1]], [0, 1]), {}, '2 labels for 1 boxes'),
    (([[0, 0, 1, 1]], None, [0.1, 0.2]), {}, '2 scores for 1 boxes'),
    (([[0, 0, 1, 1]], [3]), dict(classes=['a', 'b']), 'label 3'), (([[0, 0, 1, 1]], [-2]), {}, 'label -2'),
    ((np.ones((4, 3)),), {}, r'\(4, 3\)'), (([[0, 0, 1, float('inf')]],), {}, 'not finite'),
    (([[0, 0, 1, 1]],), dict(colors=['red', 'tan']), '2 colors for 1 boxes'),
    ((tv_tensors.BoundingBoxes([[0, 0, 1, 1]], format='CXCYWH', canvas_size=(4, 4)),), {}, 'CXCYWH')])
def test_what_does_not_fit_says_why(args, kwargs, text):
    with pytest.raises(ValueError, match=text): show_boxes(picture(), *args, **kwargs)
    assert not plt.get_fignums(), 'an empty figure was left behind'

def test_captions_stay_on_the_picture():
    ax = show_boxes(picture(), [[-20, -10, 20, 20], [55, 30, 90, 38]], [0, 1], classes=['first', 'second'])
    left, right = ax.texts
    assert left.get_position() == (0, 0) and left.get_ha() == 'left'
    assert right.get_position() == (60, 30) and right.get_ha() == 'right'
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 60), (40, 0)), 'a box outside must not move the picture'
    ax.plot([-50, 200], [-50, 200])
    ax.figure.canvas.draw()
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 60), (40, 0)), 'nor must a line'

def test_outlined_in_black():
    ax = show_img(picture())
    for artist in draw_rect(ax, (1, 2, 3, 4)), draw_text(ax, (1, 2), 'x'), draw_outline(ax.plot([0, 1])[0], 3):
        stroke = artist.get_path_effects()[0]
        assert stroke._gc['foreground'] == 'black' and stroke._gc['linewidth'] >= 2

def test_given_axes_are_used():
    fig, axes = grid(2, 3, size=(2, 1))
    assert axes.shape == (6,) and tuple(fig.get_size_inches()) == (6, 2)
    assert show_boxes(picture(), None, ax=axes[4], title='none') is axes[4] and axes[4].get_title() == 'none'
    assert len(plt.get_fignums()) == 1
    assert grid(1, 1)[1].shape == (1,)

def test_palette_differs_for_color_blind_readers():
    "Simulated protanopia, deuteranopia and tritanopia (Machado et al. 2009, severity 1): every two colors stay apart"
    sims = {'protan': [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
            'deutan': [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
            'tritan': [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]]}
    rgb = np.array([to_rgb(c) for c in palette])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055)**2.4)
    for name, m in sims.items():
        seen = (linear @ np.array(m).T).clip(0, 1)
        seen = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen**(1/2.4) - 0.055)
        gap = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(rgb), 1)]
        assert gap.min() > 0.1, f'{name}: two colors only {gap.min():.3f} apart'

def test_without_names_there_is_no_background():
    with pytest.raises(ValueError, match=r'expected -1 \(padding\), a class$'): show_boxes(picture(), [[0, 0, 1, 1]], [-2])
