"""`Detector.predict` on one picture file against the bare forward pass: python bench/detect_file.py [--pairs 60] [PICTURE]

Once with the sample's detector, once with a MobileNetV2 and `TopDownHead` on squares of 288 pixels, random weights. The numerator has all
of it: opening and decoding the file, resizing, the forward pass, suppression, boxes in the picture's own pixels. The denominator is the
model on a batch of one that lies ready. In turn, so that a busy machine slows both; medians. Then what each part takes.
The picture is the sample's first (300 pixels or so), or the one that you name; without it, MobileNetV2 gets a picture of VOC's size, 500 x 375."""
import argparse, tempfile
from pathlib import Path
import numpy as np, torch
from PIL import Image
from objdet.detector import Detector, TopDownHead, _open, _squash, load_detector
from objdet.learner import set_seed
from objdet.pascal_data import load_annotations
from objdet.single_obj import create_body
from objdet.sources import get_data
from ssd_loss import in_turn

def mobilenet():
    "Squares of 288, grids of 18, 9, 5, 3 and 2 cells, six anchors a cell, twenty classes"
    set_seed(42)
    args, shapes = dict(k=6, nf=192), [(1., 1.), (1., .5), (.5, 1.), (.7, .7), (.5, .5), (1., .7)]
    return Detector(create_body('mobilenet_v2', 'none'), TopDownHead((96, 1280), 20, **args), [f'c{i}' for i in range(20)],
                    ((18, 9, 5, 3, 2), [1.], shapes), 288, args, taps=(14, 19)).eval().to(memory_format=torch.channels_last)

def voc_sized(folder):
    "A JPEG of 500 x 375 pixels with shapes and some noise, about as large a file as VOC's"
    rng = np.random.default_rng(0)
    a = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)).astype(float)
    file = Path(folder)/'voc_sized.jpg'
    Image.fromarray((a + rng.normal(0, 6, a.shape)).clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return file

def bench(name, det, file, a):
    im = _open(file)
    square = _squash(im, det.size)[1][None]
    x = ((square.float()/255 - det.mean)/det.std).contiguous(memory_format=torch.channels_last)
    @torch.inference_mode()
    def bare(): return det(x)
    def whole(): return det.predict(file)
    whole_ms, bare_ms, decode, resize, model = in_turn(a, whole, bare, lambda: _open(file), lambda: _squash(im, det.size),
                                                      lambda: det._detect(square, .3, .45, 200))
    print(f'{name}: squares of {det.size}, picture {im.shape[2]} x {im.shape[1]}, {file.stat().st_size/1e3:.0f} kB, {len(whole()[0]["scores"])} detections')
    print(f'  predict {whole_ms:7.2f} ms, bare forward pass {bare_ms:7.2f} ms, ratio {whole_ms/bare_ms:.2f}')
    print(f'  of which open and decode {decode:.2f}, resize {resize:.2f}, normalize and suppress {max(0, model - bare_ms):.2f}, the rest {max(0, whole_ms - decode - resize - model):.2f} ms', flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('picture', nargs='?', type=Path)
    p.add_argument('--pairs', type=int, default=60)
    p.set_defaults(device='cpu') # `in_turn` waits for a GPU
    p.add_argument('--threads', type=int, default=torch.get_num_threads())
    p.add_argument('--clock', choices=('wall', 'cpu'), default='wall') # cpu: the process's own time, for one thread on a busy core
    p.add_argument('--model', default='sample')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    print(f'torch {torch.__version__}, {a.threads} threads; medians of {a.pairs}, in turn, {a.clock} time')
    with tempfile.TemporaryDirectory() as tmp:
        bench(a.model, load_detector(a.model), a.picture or load_annotations(get_data('sample'), 'val')[0].file, a)
        bench('mobilenet_v2, random weights', mobilenet(), a.picture or voc_sized(tmp), a)

if __name__ == '__main__': main()
