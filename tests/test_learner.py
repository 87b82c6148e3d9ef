"The training loop: what learns, what does not, and what is written"
import numpy as np, os, pytest, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from objdet.learner import Learner, read_weights, set_seed, steepest, write_whole

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
