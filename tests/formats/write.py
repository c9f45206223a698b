"""``python tests/formats/write.py`` writes a small file of every format, in this version, into VERSION.zip here.

Run it once per version, before the release; a file that exists is never written again.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path

import torch

import simmst
from simmst import Forecaster
from simmst.forecaster.config import ForecasterConfig
from simmst.jobs.city_folder import simulate
from simmst.simulation import DomainPrior, surrogate_city
from simmst.training import RunFolder, TrainingConfig, save_checkpoint


def main() -> None:
    target = Path(__file__).with_name(f"{simmst.__version__}.zip")
    if target.exists():
        raise SystemExit(f"{target} is there; it stays as that version wrote it")
    folder = Path(tempfile.mkdtemp())
    city = surrogate_city(0, height=2, width=2, days=9, services=("internet",))
    city.save(folder / "city.npz")
    simulate(1, folder / "cities", city={"height": 2, "width": 2, "days": 1})
    DomainPrior.default().to_yaml(folder / "prior.yaml")
    save_checkpoint(folder / "checkpoint.safetensors", {"weight": torch.arange(4.0)}, {"epoch": 3})
    training = TrainingConfig(epochs=1, samples_per_epoch=32, batch_size=16, validation_samples=32, device="cpu")
    network = {"width": 4, "num_heads": 1, "encoder_layers": 1, "feedforward": 4}
    config = ForecasterConfig(horizon=2, neighbourhood=1, start="scratch", network=network, training=training)
    run = RunFolder.create(folder / "run", {"job": "formats"})
    forecaster = Forecaster(config=config).fit(city, None, run=run)
    forecaster.save(run.path)
    run.finish({"chosen": "real"})
    expected = {"forecast": forecaster.predict()["y_hat"].tolist(), "activity": float(city.activity.sum())}
    (folder / "expected.json").write_text(json.dumps(expected))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".png":
                archive.write(path, path.relative_to(folder))


if __name__ == "__main__":
    main()
