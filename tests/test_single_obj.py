"One object: bodies and their weights, the data set, the head, the loss against torch. Run: pytest tests/test_single_obj.py"
import os
from pathlib import Path
from urllib.error import URLError
import numpy as np, pytest, torch, torchvision
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, StackDataset, Subset
from objdet.learner import Learner
from objdet.pascal_data import Annotations, DataLoaders, DetectionDataset, Record, squash
from objdet.sample import SymbolBody
from objdet.single_obj import (Body, CellHead, CellLoss, EveryCell, Layer, SingleLoss, SingleObjectDataset, Telemetry, accuracy, cell_boxes, cell_targets, create_body, custom_head,
                               layer_shapes, run_body, scaled_sigmoid, sigmoid_box, single_batch, single_dataloaders)

real_weights = Path(__file__).parents[2]/'shared/weights/mobilenet_v2_features.pth'
with_weights = pytest.mark.skipif(not real_weights.is_file(), reason='ImageNet weights of mobilenet_v2 are not here')

@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for k in ('OBJDET_BODY', 'OBJDET_WEIGHTS'): monkeypatch.delenv(k, raising=False)

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "An empty torch.hub, and no network"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    def refuse(url, *args, **kwargs): raise URLError('no network')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', refuse)
    (tmp_path/'torch/hub/checkpoints').mkdir(parents=True)
    return tmp_path/'torch/hub/checkpoints'

def grid_of(body, size):
    with torch.no_grad(): return tuple(body(torch.zeros(1, 3, size, size)).shape)

def same(a, b): return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

# bodies

@pytest.fixture(scope='module')
def bodies(): return {name: create_body(name, 'none') for name in ('symbols', 'mobilenet_v2', 'resnet34')}

@pytest.mark.parametrize('name,channels,stride,size', [('symbols', 256, 16, 112), ('resnet34', 512, 32, 224), ('mobilenet_v2', 1280, 32, 224)])
def test_body_knows_its_shape(name, channels, stride, size, bodies):
    body = bodies[name]
    assert (body.name, body.channels, body.stride, body.size) == (name, channels, stride, size)
    assert grid_of(body, size) == (1, channels, 7, 7)

def test_lecture_body_gives_25088_activations(bodies):
    body = bodies['resnet34']
    with torch.no_grad(): assert body(torch.zeros(1, 3, 224, 224)).flatten(1).shape[1] == 512*7*7 == 25_088
    assert [type(m).__name__ for m in body.groups()[1]] == ['Sequential', 'Sequential']  # layer3 and layer4, the lecture's cut

@pytest.mark.parametrize('name', ['symbols', 'mobilenet_v2', 'resnet34'])
def test_groups_are_the_whole_body_once(name, bodies):
    body = bodies[name]
    ids = [id(p) for g in body.groups() for p in g.parameters()]
    assert sorted(ids) == sorted(id(p) for p in body.parameters()) and all(len(list(g.parameters())) for g in body.groups())

def test_body_is_torchvisions_own_features():
    torch.manual_seed(0); body = create_body('resnet18', 'none').eval()
    torch.manual_seed(0); model = torchvision.models.resnet18(weights=None).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): torch.testing.assert_close(model.fc(body(x).mean((2, 3))), model(x))

def test_variables_choose_the_body(monkeypatch):
    monkeypatch.setenv('OBJDET_BODY', 'resnet18'); monkeypatch.setenv('OBJDET_WEIGHTS', 'none')
    assert create_body().name == 'resnet18'
    assert create_body('symbols').name == 'symbols'

@pytest.mark.parametrize('name', ['resnet99', 'fasterrcnn_resnet50_fpn', 'Symbols'])
def test_unknown_body(name):
    with pytest.raises(ValueError, match=f'unknown body {name!r}'): create_body(name, 'none')

def test_body_of_another_kind_is_refused():
    with pytest.raises(ValueError, match='RegNet: expected a model with `features`'): create_body('regnet_y_400mf', 'none')

class ChannelsLast(nn.Module): # swin's `features` give grids with the channels last
    def forward(self, x): return x.permute(0, 2, 3, 1)

@pytest.mark.parametrize('layers', [[nn.Conv2d(3, 768, 32, 32), ChannelsLast()], [nn.Conv2d(3, 8, 32, 32), nn.Flatten()],
                                    [nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)]])
def test_layers_that_give_no_grid_of_seven_are_refused(layers):
    with pytest.raises(ValueError, match=r'odd: expected a grid \(b, channels, 7, 7\)'): Body(layers, 'odd', 1)

# weights

def test_default_weights_of_the_package():
    body = create_body()
    assert body.name == 'symbols' and not same(body.layers, SymbolBody())
    assert all(torch.isfinite(p).all() for p in body.parameters())

@with_weights
def test_mobilenet_from_a_file():
    body, d = create_body('mobilenet_v2', real_weights), torch.load(real_weights, weights_only=True)
    got = {f'features.{k}': v for k, v in body.layers.state_dict().items()}
    assert got.keys() >= d.keys() and all(torch.equal(got[k], d[k]) for k in d)
    assert all('num_batches' in k for k in got.keys() - d.keys())
    assert grid_of(body, 224) == (1, 1280, 7, 7)

@with_weights
def test_pretrained_features_tell_pictures_apart():
    "Not only the names fit: real weights answer different pictures differently, and sparsely (ReLU6)"
    from objdet.show import normalize
    body = create_body('mobilenet_v2', real_weights)
    ramp = torch.linspace(0, 1, 224).expand(3, 224, 224)
    with torch.no_grad(): a = body(normalize(torch.stack([ramp, ramp.transpose(1, 2), torch.full_like(ramp, .5)])))
    assert 0 <= a.min() and a.max() <= 6 and (a[0] - a[2]).abs().mean() > .01

def test_file_of_the_whole_model_or_of_its_features(tmp_path):
    model = torchvision.models.mobilenet_v2(weights=None)
    for name, d in {'whole': model.state_dict(), 'features': model.features.state_dict(), 'half': model.half().state_dict()}.items():
        torch.save(d, tmp_path/f'{name}.pth')
        body = create_body('mobilenet_v2', tmp_path/f'{name}.pth')
        torch.testing.assert_close(body.layers[0][0].weight, model.features[0][0].weight.float(), atol=1e-3, rtol=1e-2)
        assert body.layers[0][0].weight.dtype == torch.float32

def test_old_file_without_batch_counts(tmp_path):
    model = torchvision.models.resnet18(weights=None)
    torch.save({k: v for k, v in model.state_dict().items() if 'num_batches' not in k}, tmp_path/'old.pth')
    assert torch.equal(create_body('resnet18', tmp_path/'old.pth').layers[0].weight, model.conv1.weight)

@pytest.mark.parametrize('name', ['symbols', 'mobilenet_v2'])
def test_missing_file(name, tmp_path):
    with pytest.raises(FileNotFoundError, match='gone.pth'): create_body(name, tmp_path/'gone.pth')

@pytest.mark.parametrize('name', ['symbols', 'mobilenet_v2'])
@pytest.mark.parametrize('what', ['text', 'empty', 'cut', 'tensor', 'other model'])
def test_wrong_file(name, what, tmp_path):
    file = tmp_path/'wrong.pth'
    if what == 'text': file.write_text('not weights')
    elif what == 'empty': file.write_bytes(b'')
    elif what == 'tensor': torch.save(torch.zeros(3), file)
    else: torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), file)
    if what == 'cut': file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match='wrong.pth'): create_body(name, file)

def test_weights_of_another_body_name_the_first_that_differs(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path/'r18.pth')
    with pytest.raises(ValueError, match=r'r18.pth: weights of another body; \d+ of \d+ do not fit, the first is layer1.2'):
        create_body('resnet34', tmp_path/'r18.pth')

class Evil:
    def __reduce__(self): return os.mkdir, ('evil-was-here',)

def test_file_that_would_run_code_is_refused(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    torch.save({'conv1.weight': Evil()}, tmp_path/'evil.pth')
    torch.save({'conv1.weight': Evil()}, hub/Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name)
    for weights in (tmp_path/'evil.pth', 'DEFAULT'):
        with pytest.raises(ValueError, match='.pth: not '): create_body('resnet18', weights)
    assert not (tmp_path/'evil-was-here').exists()

# torchvision's own weights, from torch.hub's folder

def test_default_without_network_says_what_to_do(hub):
    file = Path(torchvision.models.ResNet34_Weights.DEFAULT.url).name
    with pytest.raises(FileNotFoundError) as e: create_body('resnet34', 'DEFAULT')
    assert str(hub/file) in str(e.value) and 'put the file there' in str(e.value) and 'OBJDET_WEIGHTS' in str(e.value)
    assert 'no network' in str(e.value) and not list(hub.iterdir())

@pytest.mark.parametrize('name', ['resnet34', 'mobilenet_v2'])
def test_default_from_the_hub_folder(name, hub):
    "torchvision checks the hash of a download, not of a file that is there already: random weights under the right name load"
    torch.manual_seed(1)
    model = torchvision.models.get_model(name, weights=None)
    torch.save(model.state_dict(), hub/Path(torchvision.models.get_model_weights(name).DEFAULT.url).name)
    body = create_body(name)  # weights: DEFAULT by default
    features = model.features if hasattr(model, 'features') else nn.Sequential(*list(model.children())[:-2])
    assert same(body.layers, features)

def test_broken_file_in_the_hub_folder_is_named(hub):
    file = hub/Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name
    for d in (b'<html>', b''):
        file.write_bytes(d)
        with pytest.raises(ValueError, match=f'{file.name}: not the weights of resnet18'): create_body('resnet18')
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), file)
    with pytest.raises(ValueError, match=f'{file.name}: not the weights of resnet18'): create_body('resnet18')

# data

@pytest.fixture(scope='module')
def annotations(tmp_path_factory):
    folder, rng, records = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0), []
    rows = [([[0, 0, 9, 9], [5, 10, 35, 30], [0, 0, 40, 40]], [0, 1, 2], [0, 0, 1]), ([], [], []), ([[1, 2, 3, 4]], [2], [1]),
            ([[10, 0, 20, 40]], [2], [0]), ([[0, 0, 4, 4], [0, 0, 8, 2]], [1, 0], [0, 0])]
    for i, (boxes, labels, hard) in enumerate(rows):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder/f'{i}.png')
        records.append(Record(folder/f'{i}.png', i, 50, 40, np.float32(boxes).reshape(-1, 4), np.array(labels, np.int64), np.array(hard, bool)))
    return Annotations(records, ['a', 'b', 'c'], [])

def test_largest_not_difficult_and_pictures_without_left_out(annotations):
    ds = SingleObjectDataset(annotations)
    assert [(o[1][0].tolist(), int(o[1][1])) for o in (ds[i] for i in range(len(ds)))] == [([5, 10, 35, 30], 1), ([10, 0, 20, 40], 2), ([0, 0, 4, 4], 1)]
    assert [r.id for r in ds.annotations] == [0, 3, 4]
    assert len(annotations[0].labels) == 3  # the annotations themselves are left as they were

def test_batch_is_in_pixels_of_the_square(annotations):
    dls = single_dataloaders(annotations, annotations, 20, bs=2)
    x, (boxes, labels) = next(iter(dls.valid))
    assert (x.shape, x.dtype, boxes.dtype, labels.dtype) == ((3, 3, 20, 20), torch.float32, torch.float32, torch.int64)
    torch.testing.assert_close(boxes, torch.tensor([[2., 5, 14, 15], [4, 0, 8, 20], [0, 0, 1.6, 2]]))
    assert labels.tolist() == [1, 2, 1]

def test_batch_has_the_pictures_of_the_detection_data_set(annotations):
    ds, whole = SingleObjectDataset(annotations, squash(20)), DetectionDataset(annotations, squash(20))
    assert torch.equal(ds[1][0], whole[3][0])

def test_no_object_at_all(annotations):
    with pytest.raises(ValueError, match='none of 2 pictures'): SingleObjectDataset(Annotations(annotations.records[1:3], 'abc', []))

def test_transforms_that_lose_the_object(annotations):
    calls = []
    def lose(im, target, times=3):
        calls.append(1)
        return im, target if len(calls) > times else dict(boxes=target['boxes'][:0], labels=target['labels'][:0])
    assert SingleObjectDataset(annotations, lose)[1][1][1] == 2 and len(calls) == 4
    with pytest.raises(ValueError, match='0.png: the transforms removed'): SingleObjectDataset(annotations, lambda i, t: lose(i, t, 999))[0]

def test_flip_moves_the_box(annotations):
    from torchvision.transforms import v2
    ds = SingleObjectDataset(annotations, v2.RandomHorizontalFlip(1.))
    assert ds[1][1][0].tolist() == [30, 0, 40, 40]

def test_kept_activations_are_the_bodys(annotations):
    body = Body([nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.ReLU()], 'toy', 1)
    body.train(); before = body.layers[1].running_mean.clone()
    ds = SingleObjectDataset(annotations, squash(body.size))
    kept = run_body(body, ds, bs=2)
    x, y = single_batch([ds[i] for i in range(3)])
    with torch.no_grad(): torch.testing.assert_close(torch.stack([kept[i][0] for i in range(3)]), body(x))
    assert torch.equal(torch.stack([kept[i][1][0] for i in range(3)]), y[0]) and [int(kept[i][1][1]) for i in range(3)] == y[1].tolist()
    assert torch.equal(body.layers[1].running_mean, before) and not kept[0][0].requires_grad

class Elsewhere(nn.Module):
    "Stands for a body on a GPU: it takes what is on the device of its weights"
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(1, device='meta'))
    def forward(self, x): assert x.device == self.w.device; return torch.ones(len(x), 2, 7, 7)

def test_pictures_go_to_where_the_body_is(annotations):
    kept = run_body(Elsewhere(), SingleObjectDataset(annotations, squash(32)), bs=2)
    assert len(kept) == 3 and kept[0][0].shape == (2, 7, 7)

# summary

def test_layer_shapes_against_torch():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(8*16, 5))
    rows = layer_shapes(model, torch.zeros(2, 3, 8, 8))
    assert [r.shape for r in rows] == [(2, 8, 4, 4), (2, 8, 4, 4), (2, 8, 4, 4), (2, 128), (2, 5)]
    assert [r.kind for r in rows] == ['Conv2d', 'BatchNorm2d', 'Dropout', 'Flatten', 'Linear']
    assert [r.weights for r in rows] == [224, 16, 0, 0, 645]

def test_layer_shapes_leaves_no_trace():
    model = custom_head(8, 2, hidden=4); model[5].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    layer_shapes(model, torch.ones(1, 2, 2, 2))
    assert model.training and not model[5].training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model)
    with pytest.raises(RuntimeError): layer_shapes(model, torch.ones(1, 3, 3, 3))
    assert not any(m._forward_hooks for m in model) and model.training

def test_layer_prints_without_the_batch():
    assert str(Layer('Conv2d', (1, 512, 7, 7), 13_114_368)).split() == 'Conv2d 512 x 7 x 7 13,114,368'.split()

# telemetry

def hooks_of(model): return sum(len(m._forward_hooks) for m in model.modules())

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 50), st.integers(0, 10**6))
def test_telemetry_against_numpy(b, units, steps, bins, seed):
    g, layer = torch.Generator().manual_seed(seed), nn.Identity()
    xs = [3*torch.randn(b, units, 2, 3, generator=g).relu() for _ in range(steps)]
    with Telemetry([layer], bins=bins, high=4.) as seen:
        for x in xs: layer(x)
    assert seen.hists[0].shape == (bins, steps) and seen.silent[0].shape == (units, steps)
    for i, x in enumerate(x.numpy() for x in xs):
        counts, _ = np.histogram(x, bins, (0, 4))
        assert seen.means[0][i] == pytest.approx(x.mean(), abs=1e-5) and seen.stds[0][i] == pytest.approx(x.std(), abs=1e-4)
        assert seen.hists[0][:, i].sum() == counts.sum() and np.abs(seen.hists[0][:, i].numpy() - counts).sum() <= 2 # a number on an edge
        assert seen.outside[0][i] == pytest.approx((x > 4).mean(), abs=1e-6)
        assert seen.silent[0][:, i].tolist() == (x == 0).all((0, 2, 3)).tolist()
    silent = np.stack([(x.numpy() == 0).all((0, 2, 3)) for x in xs[-2:]])
    assert seen.dead(2)[0] == pytest.approx(silent.all(0).mean())

def test_telemetry_removes_its_hooks_after_an_exception():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with pytest.raises(RuntimeError):
        with Telemetry(model) as seen:
            assert hooks_of(model) == 2
            model(torch.ones(4, 2)); model(torch.ones(4, 5))
    assert hooks_of(model) == 0
    model(torch.ones(4, 2))
    assert [len(o) for o in seen.means] == [1, 1]

def test_telemetry_notes_nothing_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with Telemetry(model) as seen:
        model.eval()(torch.ones(4, 2)); assert seen.means == seen.stds == seen.outside == [[], []]
        model.train()(torch.ones(4, 2)); model[1].eval(); model(torch.ones(4, 2))
    assert [len(o) for o in seen.means] == [2, 1]  # a frozen part is in evaluation mode too

def test_telemetry_changes_nothing():
    model, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.ones(4, 2)
    want = model(x)
    with Telemetry(model): got = model(x)
    assert torch.equal(want, got) and got.requires_grad

def test_telemetry_counts_training_batches_of_learner():
    ds = StackDataset(torch.randn(20, 3), torch.randn(20, 1))
    learn = Learner(nn.Sequential(nn.Linear(3, 1)), DataLoaders(DataLoader(ds, 4), DataLoader(ds, 4)), F.mse_loss, device='cpu')
    with Telemetry([learn.model[0]]) as seen: learn.fit_one_cycle(3, 1e-3)
    assert len(seen.means[0]) == 5*3 and seen.hists[0].shape == (40, 15)

# a point

def test_scaled_sigmoid_reaches_both_ends():
    ends = torch.tensor([-np.log(21.), 0, np.log(21.)])
    torch.testing.assert_close(scaled_sigmoid(ends), torch.tensor([0, .5, 1]).to(ends), atol=1e-6, rtol=0)
    x = torch.linspace(-8, 8, 50)
    torch.testing.assert_close(scaled_sigmoid(x, 0, 1), torch.sigmoid(x))
    assert scaled_sigmoid(x, -2, 3).min() > -2 and scaled_sigmoid(x, -2, 3).max() < 3

# head

def test_head_is_the_lectures():
    head = custom_head(25_088, 24)
    assert [type(m).__name__ for m in head] == 'Flatten ReLU Dropout Linear ReLU BatchNorm1d Dropout Linear'.split()
    assert (head[3].in_features, head[3].out_features, head[7].in_features, head[7].out_features) == (25_088, 256, 256, 24)
    assert (head[2].p, head[6].p, custom_head(4, 2, drop=.1)[6].p) == (.5, .5, .1)

# loss

def test_sigmoid_box_by_hand():
    torch.testing.assert_close(sigmoid_box(torch.tensor([[0., 1e4, -1e4, 1.0986123]]), 224), torch.tensor([[112., 224, 0, 168]]))

def test_loss_by_hand():
    preds = torch.zeros(2, 7); preds[1, 6] = np.log(2.)
    y = torch.tensor([[50., 50, 50, 50], [40, 60, 50, 54]]), torch.tensor([0, 2])
    l1, ce = SingleLoss(100).each(preds, y)
    torch.testing.assert_close(l1, torch.tensor([0., 6]))
    torch.testing.assert_close(ce, torch.tensor([3., 2]).log())  # 1/3, and 2/(1 + 1 + 2)
    assert SingleLoss(100, 10)(preds, y).item() == pytest.approx(3 + 10*np.log(6)/2)

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 25), st.floats(.1, 100), st.sampled_from([112, 224, 300]), st.integers(0, 10**6))
def test_loss_against_torch(b, c, factor, size, seed):
    g = torch.Generator().manual_seed(seed)
    preds = 3*torch.randn(b, 4 + c, generator=g)
    y = torch.rand(b, 4, generator=g)*size, torch.randint(0, c, (b,), generator=g)
    loss = SingleLoss(size, factor)
    want_l1, want_ce = nn.L1Loss()(torch.sigmoid(preds[:, :4])*size, y[0]), nn.CrossEntropyLoss()(preds[:, 4:], y[1])
    torch.testing.assert_close(loss(preds, y), want_l1 + factor*want_ce)
    torch.testing.assert_close(loss.l1(preds, y), want_l1)
    assert loss.accuracy(preds, y) == accuracy(preds[:, 4:], y[1]) == np.mean([int(p.argmax()) == int(t) for p, t in zip(preds[:, 4:], y[1])])

@settings(max_examples=30, deadline=None)
@given(st.floats(-1e6, 1e6), st.sampled_from([112, 224]))
def test_box_stays_inside_and_loss_is_finite(a, size):
    preds = torch.full((2, 9), a).requires_grad_()
    loss = SingleLoss(size, 20)(preds, (torch.rand(2, 4)*size, torch.tensor([0, 4])))
    loss.backward()
    assert 0 <= sigmoid_box(preds, size).min() and sigmoid_box(preds, size).max() <= size
    assert torch.isfinite(loss) and torch.isfinite(preds.grad).all()

def test_loss_leaves_targets_alone():
    "Pitfall 13: a helper applied twice must not scale the targets twice"
    preds, y = torch.randn(3, 9), (torch.rand(3, 4)*112, torch.tensor([0, 1, 2]))
    kept, loss = (y[0].clone(), y[1].clone()), SingleLoss(112, 5)
    assert loss(preds, y) == loss(preds, y) and torch.equal(y[0], kept[0]) and torch.equal(y[1], kept[1])

def test_each_gradient_reaches_its_own_activations():
    preds, y = torch.randn(3, 9, requires_grad=True), (torch.rand(3, 4)*112, torch.tensor([0, 1, 2]))
    l1, ce = SingleLoss(112).each(preds, y)
    g1, = torch.autograd.grad(l1.sum(), preds, retain_graph=True); g2, = torch.autograd.grad(ce.sum(), preds)
    assert (g1[:, :4] != 0).all() and (g1[:, 4:] == 0).all() and (g2[:, :4] == 0).all() and (g2[:, 4:] != 0).all()

# all together

def test_learns_to_find_a_square():
    "A bright or dark square on gray: class and box are learned through body, head and loss"
    rng, x, boxes = np.random.default_rng(0), torch.zeros(96, 3, 56, 56), []
    for i in range(96):
        (u, v), s = rng.integers(0, 36, 2).tolist(), int(rng.integers(12, 20))
        x[i, :, v:v+s, u:u+s] = 2.*(i % 2) - 1
        boxes.append([u, v, u+s, v+s])
    ds = StackDataset(x, StackDataset(torch.tensor(boxes).float(), torch.arange(96) % 2))
    torch.manual_seed(0)
    body = Body([nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU()], 'toy', 2)
    loss, model = SingleLoss(56, 5.), nn.Sequential(body, custom_head(16*49, 6, drop=0.))
    dls = DataLoaders(DataLoader(Subset(ds, range(72)), 24, shuffle=True), DataLoader(Subset(ds, range(72, 96)), 24))
    learn = Learner(model, dls, loss, dict(acc=loss.accuracy, l1=loss.l1), [*body.groups(), model[1]], device='cpu')
    learn.freeze(); learn.fit_one_cycle(2, 1e-2)
    learn.unfreeze(); learn.fit_one_cycle(25, [3e-3, 3e-3, 1e-2])
    assert learn.history[-1]['acc'] >= .95 and learn.history[-1]['l1'] < 5


# --- a head of cells

def test_a_cells_box_counts_from_its_own_center_on_any_grid():
    "Rows and columns mixed: works on square grids, fails on this one (pitfall 16)"
    boxes = cell_boxes(torch.zeros(1, 4, 2, 3))
    assert boxes.shape == (1, 4, 2, 3)
    center = (boxes[0, :2] + boxes[0, 2:])/2
    assert torch.allclose(center[:, 1, 2], torch.tensor([2.5/3, 1.5/2])) and torch.allclose(center[:, 0, 1], torch.tensor([.5, .25]))

@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 999))
def test_shares_add_up_and_the_answer_is_their_mean(rows, columns, seed):
    torch.manual_seed(seed)
    head, x = CellHead(4, 3, width=8).eval(), torch.randn(2, 4, rows, columns)
    with torch.no_grad(): (share, boxes, scores), out = head.cells(x), head(x)
    assert torch.allclose(share.sum((1, 2, 3)), torch.ones(2), atol=1e-5)
    by_hand = torch.stack([sum(share[k, 0, i, j]*scores[k, :, i, j] for i in range(rows) for j in range(columns)) for k in range(2)])
    assert torch.allclose(out[:, 4:], by_hand, atol=1e-5)
    box = (share*boxes).sum((2, 3)).clamp(.001, .999)
    assert torch.allclose(sigmoid_box(out[:, :4], 1), box, atol=1e-4)

def test_a_box_far_outside_gives_a_finite_loss_and_gradient():
    "The logit of 0 or 1 is infinite"
    head = CellHead(2, 2, width=4)
    with torch.no_grad(): head.layers[-1].bias[1] = 1e4
    loss = SingleLoss(100)(head(torch.randn(3, 2, 4, 4)), (torch.tensor([[1., 2, 30, 40]]*3), torch.tensor([0, 1, 0])))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in head.parameters())

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 60)]*2, *[st.integers(1, 60)]*2), max_size=5), st.integers(1, 8))
def test_each_cell_has_the_smallest_object_whose_middle_half_holds_its_center(corners, n):
    "Rows and columns mixed up, the larger object on top, objects smaller than a cell lost, or an empty picture: any of them gives another map"
    size = 64
    boxes = torch.tensor([[x, y, min(x + w, size), min(y + h, size)] for x, y, w, h in corners], dtype=torch.float32).view(-1, 4)
    found, names = cell_targets(boxes, torch.arange(len(boxes)), size, n)
    assert found.shape == (n, n, 4) and names.shape == (n, n) and names.dtype == torch.int64
    cell = size/n
    for i in range(n):
        for j in range(n):
            inside = {}
            for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                near = [abs((at + .5)*cell - (a + b)/2) - max((b - a)/4, cell/2) for at, a, b in ((j, x1, x2), (i, y1, y2))]
                if abs(max(near)) < 1e-3: break # on the very border: rounding decides
                if max(near) < 0: inside[k] = (x2 - x1)*(y2 - y1)
            else:
                k = min(inside, key=inside.get) if inside else -1
                same_size = [o for o in inside if inside[o] == inside.get(k)]
                assert names[i, j] in (same_size or [-1])
                if inside: assert torch.equal(found[i, j], boxes[names[i, j]])

def test_every_cell_wraps_the_head_and_leaves_its_answer():
    head, x = CellHead(4, 3, width=8).eval(), torch.randn(2, 4, 3, 5)
    with torch.no_grad(): (answer, cells), (_, boxes, scores) = EveryCell(head)(x), head.cells(x)
    assert torch.equal(answer, head(x)) and cells.shape == (2, 7, 3, 5)
    assert torch.equal(cells[:, 4:], scores)
    assert torch.allclose(sigmoid_box(cells[:, :4], 1), boxes.clamp(.001, .999), atol=1e-4)
    assert {id(p) for p in EveryCell(head).parameters()} == {id(p) for p in head.parameters()}

def test_the_cells_loss_is_the_pictures_loss_of_the_cells_in_objects():
    "Cells in no object that cost something, or a mean over all cells or over pictures, give another number"
    torch.manual_seed(0)
    preds = torch.randn(3, 6), torch.randn(3, 6, 2, 4)
    names = torch.tensor([[[0, -1, 1, -1]]*2, [[-1]*4]*2, [[-1, -1, -1, 0], [-1]*4]])
    y = torch.rand(3, 4)*50, torch.tensor([0, 1, 1]), torch.rand(3, 2, 4, 4)*50, names
    loss, plain = CellLoss(50, 7., .1, every=3.), SingleLoss(50, 7., .1)
    at = [(b, i, j) for b in range(3) for i in range(2) for j in range(4) if names[b, i, j] >= 0]
    cells = [plain(preds[1][b, :, i, j][None], (y[2][b, i, j][None], names[b, i, j][None])) for b, i, j in at]
    assert loss(preds, y).item() == pytest.approx((plain(preds[0], y) + 3*sum(cells)/len(at)).item(), rel=1e-5)
    assert loss.l1(preds, y) == plain.l1(preds[0], y) and loss.accuracy(preds, y) == plain.accuracy(preds[0], y)

def test_no_cell_in_an_object_gives_the_pictures_loss_and_no_nan():
    "A mean over nothing"
    preds = torch.randn(2, 6, requires_grad=True), torch.randn(2, 6, 3, 3, requires_grad=True)
    y = torch.rand(2, 4)*50, torch.tensor([0, 1]), torch.zeros(2, 3, 3, 4), torch.full((2, 3, 3), -1)
    loss = CellLoss(50, 7.)(preds, y)
    loss.backward()
    assert loss == SingleLoss(50, 7.)(preds[0], y) and not preds[1].grad.any()

def test_telemetry_before_any_step():
    seen = Telemetry([nn.ReLU()])
    for read in lambda: seen.hists, lambda: seen.silent, seen.dead:
        with pytest.raises(ValueError, match='no steps noted'): read()
