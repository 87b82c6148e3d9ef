"""Make objdet/weights/detector_sample.pt, which `load_detector('sample')` reads, of what lesson 06 left in the results of a course run.

    python scripts/ship_sample.py [RESULTS]      the folder is _course/sample/results by default

Prints the score on the sample's validation pictures before and after half precision; writes nothing if it is not the lesson's."""
import argparse, json
from pathlib import Path
import torch
from torch.utils.data import DataLoader
from objdet import __version__
from objdet.detector import Detector, load_detector
from objdet.focal_nms import detect
from objdet.learner import read_weights
from objdet.pascal_data import DetectionDataset, load_splits, pad_batch, squash
from objdet.sample import sample_path
from objdet.score import mean_ap
from objdet.single_obj import create_body
from objdet.ssd_loss import SSDMultiHead

file = Path(__file__).resolve().parent.parent/'objdet'/'weights'/'detector_sample.pt'


def made(folder):
    "The detector that lesson 06 left in `folder`"
    r = json.loads((folder/'06_focal_nms.json').read_text())
    if r['data'] != 'sample': raise SystemExit(f'{folder}: results on {r["data"]}; expected the sample')
    grids, zooms, shapes = r['anchors']
    body = create_body('symbols', 'none')
    notes = dict(data='the embedded sample, 2,000 training pictures', recipe=f'lesson 06, {r["epochs"]} epochs', map=r['map'], objdet=__version__)
    det = Detector(body, SSDMultiHead(body.channels, len(r['classes']), **r['head']), r['classes'], (grids, zooms, shapes), r['size'], r['head'], notes=notes)
    state = read_weights(folder/'06_focal_nms.pt')['model']
    det.body.load_state_dict({k.removeprefix('0.layers.'): v for k, v in state.items() if k.startswith('0.')})
    det.head.load_state_dict({k.removeprefix('1.'): v for k, v in state.items() if k.startswith('1.')})
    return det.eval()


@torch.inference_mode()
def score(det):
    "mAP on the sample's validation pictures"
    ds = DetectionDataset(load_splits(sample_path())[1], squash(det.size))
    found = [f for x, _ in DataLoader(ds, 50, collate_fn=pad_batch) for f in detect(det(x), det.anchors, det.grid_sizes, det.size)]
    return mean_ap(found, ds.targets(det.size), n_classes=len(det.classes)).map


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('results', nargs='?', type=Path, default=file.parent.parent.parent/'_course'/'sample'/'results')
    det = made(p.parse_args().results)
    found = score(det)
    print(f'mAP {found:.4f}')
    if abs(found - det.plan['notes']['map']) > .005: raise SystemExit(f'the lesson scored {det.plan["notes"]["map"]:.4f}: {file.name} stays as it is')
    det.save(file)
    print(f'after half precision {score(load_detector(file)):.4f}; {file.stat().st_size/2**20:.2f} MiB')

if __name__ == '__main__': main()
