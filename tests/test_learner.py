"The training loop: what learns, what does not, and what is written"
import collections, copy, functools, io, numpy as np, os, pytest, random, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler, default_collate
from objdet.learner import Learner, read_weights, set_seed, steepest, to_device, whole_file, write_whole

def problem(n=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, generator=g)
    ds = TensorDataset(x, x.sum(1, keepdim=True))
    class dls: train, valid = DataLoader(ds, 16, shuffle=True, generator=torch.Generator().manual_seed(1)), DataLoader(ds, 24)
    return dls

def net(): return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
def learner(**kw):
    set_seed(0); m = net()
    return Learner(m, problem(), nn.functional.mse_loss, groups=list(m), device='cpu', **kw)

def test_one_adam_step_is_torch_s():
    set_seed(0); m = nn.Linear(3, 1); twin = nn.Linear(3, 1); twin.load_state_dict(m.state_dict())
    dls = problem(16)
    Learner(m, dls, nn.functional.mse_loss, wd=.1, device='cpu').fit_one_cycle(1, 1e-2, pct_start=.5)
    opt = torch.optim.AdamW(twin.parameters(), 1e-2, weight_decay=.1)
    torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, 1, pct_start=.5)
    x, y = next(iter(problem(16).train))
    nn.functional.mse_loss(twin(x), y).backward(); opt.step()
    assert torch.allclose(m.weight, twin.weight, atol=1e-6) and torch.allclose(m.bias, twin.bias, atol=1e-6)

def test_the_same_seed_gives_the_same_weights():
    a, b = learner(), learner()
    for l in (a, b): l.fit_one_cycle(2, .01)
    assert all(torch.equal(p, q) for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values()))
    assert a.losses == b.losses

def test_lr_find_leaves_no_trace():
    a, b = learner(), learner()
    b.lr_find(plot=False)
    for l in (a, b): l.fit_one_cycle(2, .01)
    assert a.losses == b.losses

def test_frozen_groups_do_not_move_and_later_do():
    l = learner(); l.freeze()
    old = {k: v.clone() for k, v in l.model.state_dict().items()}
    l.fit_one_cycle(1, .1)
    new = l.model.state_dict()
    assert all(torch.equal(old[k], new[k]) == (not k.startswith('2.')) for k in old)
    l.freeze_to(1); l.fit_one_cycle(1, .1)
    assert torch.equal(old['0.weight'], l.model.state_dict()['0.weight']) and not torch.equal(old['1.running_mean'], l.model.state_dict()['1.running_mean'])
    l.unfreeze(); l.fit_one_cycle(1, .1)
    assert not torch.equal(old['0.weight'], l.model.state_dict()['0.weight'])

def test_each_group_has_its_rate():
    l = learner(); old = {k: v.clone() for k, v in l.model.state_dict().items()}
    l.fit_one_cycle(1, [0., 0., .1])
    assert torch.equal(old['0.weight'], l.model.state_dict()['0.weight']) and not torch.equal(old['2.weight'], l.model.state_dict()['2.weight'])
    with pytest.raises(ValueError, match='2 rates for 3 groups'): l.fit_one_cycle(1, [.1, .1])

def test_metrics_are_means_over_pictures_not_batches():
    l = learner(metrics={'n': lambda p, y: float(len(y))})
    assert l.validate()['n'] == pytest.approx((24*24 + 24*24 + 16*16)/64)

def test_validation_does_not_learn():
    l = learner(); old = {k: v.clone() for k, v in l.model.state_dict().items()}
    l.validate(); l.predict()
    assert all(torch.equal(old[k], v) for k, v in l.model.state_dict().items())

def test_save_load(tmp_path):
    a, b = learner(), learner()
    a.fit_one_cycle(1, .1); a.save(tmp_path/'deep/a.pt'); b.load(tmp_path/'deep/a.pt')
    assert torch.equal(a.predict(), b.predict()) and b.history == a.history
    assert [o.name for o in (tmp_path/'deep').iterdir()] == ['a.pt']

def test_a_failed_write_keeps_the_old_file(tmp_path):
    write_whole({'a': 1}, tmp_path/'w.pt')
    with pytest.raises(Exception): write_whole({'a': lambda: 1}, tmp_path/'w.pt')
    assert read_weights(tmp_path/'w.pt') == {'a': 1} and len(list(tmp_path.iterdir())) == 1

def test_loading_what_is_no_checkpoint(tmp_path):
    l = learner()
    with pytest.raises(FileNotFoundError, match='none.pt'): l.load(tmp_path/'none.pt')
    (tmp_path/'text.pt').write_text('hello')
    with pytest.raises(ValueError, match='text.pt'): l.load(tmp_path/'text.pt')
    torch.save({'x': torch.ones(1)}, tmp_path/'x.pt')
    with pytest.raises(ValueError, match='x.pt: not written by Learner.save'): l.load(tmp_path/'x.pt')
    old = copy.deepcopy(l.model.state_dict())
    for bad in {'model': net().state_dict()}, {'model': 3, 'history': []}:
        torch.save(bad, tmp_path/'x.pt')
        with pytest.raises(ValueError, match='x.pt: not written by Learner.save'): l.load(tmp_path/'x.pt')
    assert all(torch.equal(v, old[k]) for k, v in l.model.state_dict().items())  # refused before anything is read into it
    torch.save(nn.Linear(1, 1), tmp_path/'code.pt')      # a pickled object runs code when it is read
    with pytest.raises(ValueError, match='code.pt'): l.load(tmp_path/'code.pt')

def test_a_loss_that_is_not_finite_stops_before_the_weights_are_lost():
    l = learner(); l.loss_func = lambda p, y: p.mean()*float('inf')
    old = l.model[0].weight.detach().clone()
    with pytest.raises(FloatingPointError, match='step 0'): l.fit_one_cycle(1, .1)
    assert torch.equal(old, l.model[0].weight.detach())

def test_steepest_of_a_known_curve():
    x = np.linspace(0, 6, 61)
    assert steepest(list(np.exp(x)), list(-np.tanh(x - 3))) == pytest.approx(np.exp(3), rel=.02)

# checkpoints: a training that is stopped and called again, against an undisturbed one

def noisy(items):
    "A batch with noise from every global source of chance"
    x, y = default_collate(items)
    return x + .1*random.random() + .1*float(np.random.randn()) + .1*torch.randn_like(x), y

def chancy(workers=0, sampler=False, stop=None, opt=torch.optim.AdamW, seed=0):
    "A learner with dropout, noisy batches and its own shuffling; the loss stops it at the call number `stop`"
    set_seed(seed)
    ds, g = problem().valid.dataset, torch.Generator().manual_seed(1)
    order = dict(sampler=WeightedRandomSampler([1.]*len(ds), len(ds), generator=g)) if sampler else dict(shuffle=True, generator=g)
    kw = dict(num_workers=workers, persistent_workers=workers > 0)
    class dls: train, valid = DataLoader(ds, 16, collate_fn=noisy, **order, **kw), DataLoader(ds, 32, **kw)
    parts = [nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Sequential(nn.Dropout(.3), nn.Linear(8, 1))]
    calls = []
    def loss(p, y):
        calls.append(0)
        if len(calls) == stop: raise KeyboardInterrupt
        return nn.functional.mse_loss(p, y)
    return Learner(nn.Sequential(*parts), dls, loss, groups=parts, device='cpu', opt_func=opt)

def through(l, n=4, checkpoint=None, lr=.01):
    "Train; whether it got to the end"
    try: l.fit_one_cycle(n, lr, checkpoint=checkpoint)
    except KeyboardInterrupt: return False
    return True

def table(l): return [{k: v for k, v in row.items() if k != 'seconds'} for row in l.history]

def assert_same(a, b):
    for k, v in a.model.state_dict().items(): assert torch.equal(v, b.model.state_dict()[k]), k
    assert a.losses == b.losses and a.lrs == b.lrs and table(a) == table(b) and a.model.training == b.model.training
    for g, h in zip(a._generators(), b._generators(), strict=True): assert torch.equal(g.get_state(), h.get_state())

def draws(): return random.random(), np.random.randn(), torch.rand(1).item()

def resumed_equals_whole(tmp_path, stop, **kw):
    whole = chancy(**kw); assert through(whole, checkpoint=tmp_path/'whole')
    end = draws()
    assert not through(chancy(stop=stop, **kw), checkpoint=tmp_path/'c')
    again = chancy(**kw | dict(seed=9)); assert through(again, checkpoint=tmp_path/'c')  # with another seed: the file's states count
    assert draws() == end
    assert_same(whole, again)

@pytest.mark.parametrize('stop', [1, 3, 5, 9, 14, 24], ids=lambda s: f'at call {s}')  # 4 steps and 2 of validation an epoch, 4 epochs
def test_a_stopped_training_ends_as_if_it_had_not_been(tmp_path, stop): resumed_equals_whole(tmp_path, stop)

def test_with_a_sampler_that_has_its_own_generator(tmp_path): resumed_equals_whole(tmp_path, 14, sampler=True)

def test_with_loading_processes(tmp_path):
    "Their random states lived on from epoch to epoch, and no file had them; starting them drew from torch's own generator, once"
    resumed_equals_whole(tmp_path, 14, workers=1)

@pytest.mark.parametrize('opt', [functools.partial(torch.optim.SGD, momentum=.9), torch.optim.RMSprop])
def test_with_another_optimizer(tmp_path, opt): resumed_equals_whole(tmp_path, 14, opt=opt)

def test_a_checkpoint_changes_nothing(tmp_path):
    a = chancy(); through(a)
    b = chancy(); through(b, checkpoint=tmp_path/'c')
    assert a.losses == b.losses and table(a) == table(b)

def test_the_stopped_learner_itself_goes_on(tmp_path):
    "The cell of a notebook that was interrupted, run again: a stopped step's gradients stayed in the weights' .grad"
    whole = chancy(); through(whole, checkpoint=tmp_path/'whole')
    for stop in (2, 8, 23):
        l = chancy(stop=stop)
        assert not through(l, checkpoint=tmp_path/f'{stop}')
        for p in l.model.parameters(): p.grad = torch.ones_like(p)
        assert through(l, checkpoint=tmp_path/f'{stop}')
        assert_same(whole, l)

def test_a_finished_training_returns_at_once_and_trained(tmp_path, capsys):
    whole = chancy(); through(whole, checkpoint=tmp_path/'c')
    capsys.readouterr()
    stamp = (tmp_path/'c').stat().st_mtime_ns
    again = chancy(stop=1); assert through(again, checkpoint=tmp_path/'c')  # the loss is never called
    assert_same(whole, again)
    assert not again.model.training and (tmp_path/'c').stat().st_mtime_ns == stamp
    out = capsys.readouterr().out.splitlines()
    assert out[0] == 'c: 4 of 4 epochs are done' and len(out) == 2 + 4  # the table is whole

def stages(folder, stop=None):
    l = chancy(stop=stop)
    l.freeze(); l.lr_find(steps=4, plot=False)
    if not through(l, 2, folder/'head'): return None
    l.unfreeze()
    return l if through(l, 3, folder/'all', [1e-3, 1e-2]) else None

@pytest.mark.parametrize('stop', [6, 17, 30])  # 4 calls of lr_find, 12 of the first stage
def test_stages_are_run_again_from_the_start_of_the_script(tmp_path, stop):
    for o in 'one', 'two': (tmp_path/o).mkdir()
    assert stages(tmp_path/'two', stop) is None
    assert_same(stages(tmp_path/'one'), stages(tmp_path/'two'))

def test_two_stages_with_one_file_are_refused(tmp_path):
    "The second stage, of the same recipe, took the first's file for its own and did not train"
    l = chancy(); through(l, 2, tmp_path/'c')
    with pytest.raises(ValueError, match='epochs before it 0, now 2.*its own'): l.fit_one_cycle(2, .01, checkpoint=tmp_path/'c')

def test_half_files_of_killed_processes_are_swept(tmp_path):
    (tmp_path/'.c[1]-left.part').mkdir(); (tmp_path/'c[1].mine.txt').write_text('kept')
    through(chancy(), 1, tmp_path/'c[1]')
    assert sorted(f.name for f in tmp_path.iterdir()) == ['c[1]', 'c[1].mine.txt']

def frozen(): l = chancy(); l.freeze(); return l
def wider(): l = chancy(); l.model[1][1] = nn.Linear(8, 2); return l
def renamed(): l = chancy(); l.model[0].add_module('extra', nn.BatchNorm1d(8, affine=False)); return l
def other_wd(): l = chancy(); l.wd = .1; return l
def smaller_batch(): l = chancy(); l.dls.train = DataLoader(l.dls.train.dataset, 8); return l
@pytest.mark.parametrize('make, kw, words', [
    (chancy, dict(n=5), 'epochs 4, now 5'), (chancy, dict(lr=.1), 'lr .0.01, 0.01., now .0.1, 0.1.'), (frozen, {}, 'frozen groups 0, now 1'),
    (functools.partial(chancy, opt=torch.optim.SGD), {}, 'optimizer AdamW, now SGD'), (other_wd, {}, 'weight decay 0.01, now 0.1'),
    (smaller_batch, {}, 'batch size 16, now 8'), (wider, {}, 'parameters'), (renamed, {}, r'0.extra.running_mean has shape None there, .8,. here')])
def test_a_checkpoint_of_another_training_is_refused_before_anything_is_changed(tmp_path, make, kw, words):
    through(chancy(), checkpoint=tmp_path/'c')
    l, stamp = make(), (tmp_path/'c').read_bytes()
    old, state = copy.deepcopy(l.model.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError, match=f'c: a checkpoint of another training.*{words}.*remove it, or choose another file'):
        through(l, checkpoint=tmp_path/'c', **kw)
    assert all(torch.equal(v, l.model.state_dict()[k]) for k, v in old.items()) and torch.equal(state, torch.get_rng_state())
    assert l.history == l.losses == [] and (tmp_path/'c').read_bytes() == stamp

def cut(b): return b[:len(b)//2]
def flipped(b):
    i = b.index(torch.load(io.BytesIO(b))['model']['0.0.weight'].numpy().tobytes())
    return b[:i] + bytes([b[i] ^ 255]) + b[i+1:]
def empty(b): return b''
@pytest.mark.parametrize('spoil', [cut, empty, flipped])
def test_a_broken_checkpoint_is_named(tmp_path, spoil):
    through(chancy(), checkpoint=tmp_path/'c')
    (tmp_path/'c').write_bytes(spoil((tmp_path/'c').read_bytes()))
    with pytest.raises(ValueError, match='c: not a file of PyTorch weights.*remove it to train from the start'): through(chancy(), checkpoint=tmp_path/'c')

def test_a_file_of_another_kind_is_no_checkpoint(tmp_path):
    l = chancy(); l.save(tmp_path/'weights.pt')
    with pytest.raises(ValueError, match='weights.pt: not a checkpoint of a training'): through(l, checkpoint=tmp_path/'weights.pt')
    (tmp_path/'folder').mkdir()
    with pytest.raises(OSError, match='folder'): through(l, checkpoint=tmp_path/'folder')

def test_frozen_batch_norm_comes_back(tmp_path):
    "A frozen group's statistics belong to the model, not to the start of this training"
    a = chancy(); a.model[0][1].running_mean.fill_(3.); a.freeze(); through(a, checkpoint=tmp_path/'c')
    b = frozen(); through(b, checkpoint=tmp_path/'c')
    assert torch.equal(b.model[0][1].running_mean, torch.full((8,), 3.)) and not b.model[0][0].weight.requires_grad
    assert_same(a, b)

def test_optimizer_state_keeps_the_memory_format(tmp_path):
    def conv(stop=None):
        set_seed(0)
        ds = TensorDataset(torch.rand(8, 3, 4, 4), torch.rand(8, 5, 4, 4)); calls = []
        class dls: train, valid = DataLoader(ds, 4), DataLoader(ds, 4)
        opts = []
        def loss(p, y):
            calls.append(0)
            if len(calls) == stop: raise KeyboardInterrupt
            return nn.functional.mse_loss(p, y)
        def opt(*a, **kw): opts.append(torch.optim.AdamW(*a, **kw)); return opts[-1]
        l = Learner(nn.Conv2d(3, 5, 3, padding=1), dls, loss, opt_func=opt, device='cpu'); l.opts = opts
        return l
    conv_whole, stopped, again = conv(), conv(7), conv()
    through(conv_whole, checkpoint=tmp_path/'w'); assert not through(stopped, checkpoint=tmp_path/'c'); assert through(again, checkpoint=tmp_path/'c')
    assert_same(conv_whole, again)
    weight, = [p for p in again.opts[-1].param_groups[0]['params'] if p.dim() == 4]
    state = again.opts[-1].state[weight]
    assert weight.is_contiguous(memory_format=torch.channels_last) and state['exp_avg'].stride() == weight.stride() and state['step'].device.type == 'cpu'

def test_a_plain_number_s_kind_does_not_matter(tmp_path):
    "NumPy's numbers are refused by `weights_only`: the file could be written and never read"
    l = chancy(); l.wd = np.float64(.01)
    assert through(l, np.int64(2), tmp_path/'c', np.float64(.01))
    assert through(chancy(stop=1), 2, tmp_path/'c')

def test_an_empty_loader_is_not_the_validation_set():
    l = learner()
    for empty in [], DataLoader(TensorDataset(torch.zeros(0, 3), torch.zeros(0, 1))):
        with pytest.raises(ValueError, match='no pictures to validate on'): l.validate(empty)
        with pytest.raises(ValueError, match='no pictures to predict'): l.predict(empty)

def test_named_tuples_stay_what_they_are():
    Two = collections.namedtuple('Two', 'a b')
    assert to_device([Two(torch.ones(1), 'text')], 'cpu') == [Two(torch.ones(1), 'text')]
    class Both(nn.Linear):
        def forward(self, x): return Two(super().forward(x).half(), {'twice': 2*x})
    out = Learner(Both(3, 1), problem(), None, device='cpu')._forward(torch.ones(2, 3))
    assert isinstance(out, Two) and out.a.dtype == torch.float32 and out.b['twice'].tolist() == [[2.]*3]*2

def test_lr_find_puts_the_mode_back():
    l = learner(); l.model.eval(); l.model[2].train()
    l.lr_find(steps=4, plot=False)
    assert [m.training for m in l.model.modules()] == [False, False, False, True]

def test_no_losses_no_plot():
    with pytest.raises(ValueError, match='train first'): learner().plot_losses()

def test_a_whole_file_is_there_only_at_the_end(tmp_path):
    with whole_file(tmp_path/'new/a.txt') as f:
        f.write(b'one')
        assert not (tmp_path/'new/a.txt').exists()
    with pytest.raises(KeyError), whole_file(tmp_path/'new/a.txt') as f: f.write(b'half'); raise KeyError
    assert (tmp_path/'new/a.txt').read_text() == 'one' and len(list((tmp_path/'new').iterdir())) == 1

def test_half_a_file_of_a_killed_process_goes_with_the_next_write(tmp_path):
    (tmp_path/'.w.pt-left.part').mkdir(); (tmp_path/'.w.pt-left.part/w.pt').write_bytes(b'half')
    write_whole({}, tmp_path/'w.pt')
    assert [o.name for o in tmp_path.iterdir()] == ['w.pt']

def test_two_writers_of_one_file_leave_each_other_alone(tmp_path):
    "The second removed what the first was writing; each is whole, the last to finish stays"
    with whole_file(tmp_path/'w') as f:
        with whole_file(tmp_path/'w') as g: g.write(b'second')
        assert (tmp_path/'w').read_bytes() == b'second'
        f.write(b'first')
    assert (tmp_path/'w').read_bytes() == b'first' and [o.name for o in tmp_path.iterdir()] == ['w']
