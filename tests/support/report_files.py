"""Directories of studies for the tests of the report: small, complete, and made without training anything."""

import io
import json

import numpy as np
from PIL import Image

HOSTILE = "<img src=x onerror=alert(1)>&\"'</script>"
REGIMES = ("SL", "SL-adv", "RL", "RL-adv")
VERDICTS = {"SL": "sound", "SL-adv": "sound", "RL": "masked", "RL-adv": "inconclusive"}
THREATS = (("Linf", 0.1), ("L2", 1.5))


def png(width=60, height=40, colour="steelblue"):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def audit(regime, norm, eps, robust=0.25):
    verdict = VERDICTS.get(regime, "sound")
    return {
        "format": 1,
        "verdict": verdict,
        "headline": {"masked": "masked: saturated logits (vanishing loss gradient)"}.get(verdict, verdict),
        "reason": "one sentence that says why",
        "norm": norm,
        "eps": eps,
        "quick": True,
        "n": 40,
        "clean_accuracy": 0.975,
        "robust_accuracy": robust,
        "claimed_accuracy": 0.6,
        "ci95": [0.14, 0.4],
        "attacks": [
            {"name": "FGSM", "family": "standard", "tried": 40, "claimed_accuracy": 0.7, "accuracy": 0.7,
             "broken": list(range(12)), "seconds": 0.1, "error": ""},
            {"name": "Square", "family": "gradient-free", "tried": 28, "claimed_accuracy": 0.5, "accuracy": 0.5,
             "broken": [30], "seconds": 1.5, "error": ""},
            {"name": "SPSA", "family": "gradient-free", "tried": 0, "claimed_accuracy": 1.0, "accuracy": 1.0,
             "broken": [], "seconds": 0.0, "error": "it could not run"},
        ],
        "evidence": [
            {"check": "outputs differ from pass to pass", "value": 0.0, "limit": 1e-4, "alarm": False,
             "source": "ours", "note": ""},
            {"check": "zero gradients of the ce, the images", "value": 0.81, "limit": 0.5,
             "alarm": verdict == "masked", "source": "Athalye et al. 2018", "note": "a note"},
            {"check": "could not be measured", "value": None, "limit": None, "alarm": False, "source": "", "note": ""},
        ],
        "cost": {"seconds": 4.5, "forwards": 1000, "backwards": 500},
    }  # fmt: skip


def gallery(path, n=6, side=8, channels=1, pairs=True):
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (n, channels, side, side), dtype=np.uint8)
    attacked = np.clip(clean.astype(int) + rng.integers(-20, 21, clean.shape), 0, 255).astype(np.uint8)
    labels = np.arange(n) % 3
    predicted, sure = np.stack([labels, (labels + 1) % 3], 1), np.full((n, 2), (0.99, 0.625))
    if not pairs:
        predicted, sure = predicted[:, 1], sure[:, 1]
    np.savez(path, clean=clean, adversarial=attacked, labels=labels, predicted=predicted, confidences=sure)


def run_directory(path, regime, seed=0, dataset="digits", classes=("zero", "one", HOSTILE)):
    (path / "results" / "mechanism").mkdir(parents=True)
    config = {
        "format": 1,
        "algo": regime.lower(),
        "network": "small",
        "seed": seed,
        "dataset": {"name": dataset, "classes": list(classes), "num_classes": len(classes)},
        "config": {"algo": regime, "learning_rate": 0.002, "seed": seed, "adversarial": {"steps": 3}},
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
    }
    summary = {"images": 60000, "seconds": 22.0, "device": "2 threads", "test_accuracy": 0.99}
    (path / "config.json").write_text(json.dumps(config))
    (path / "summary.json").write_text(json.dumps(summary))
    for norm, eps in THREATS:
        name = f"audit-{norm}-{eps:.4g}-quick.json"
        (path / "results" / name).write_text(json.dumps(audit(regime, norm, eps, robust=0.25 + 0.05 * seed)))
    (path / "results" / "mechanism" / "landscape.png").write_bytes(png())


def study_json(seeds=2):
    cells, rows = [], []
    for regime in REGIMES:
        for seed in range(seeds):
            digest = f"{regime.lower()}{seed}"
            cells.append(
                {"id": digest, "hash": digest, "dataset": "digits", "network": "small", "regime": regime,
                 "seed": seed, "threats": ["Linf 0.1", "L2 1.5"], "status": "finished", "error": None,
                 "run": f"cells/{digest}/run"}
            )  # fmt: skip
        place = REGIMES.index(regime)
        rows.append({
            "regime": regime,
            "robust": {"value": 0.9 - 0.2 * place, "low": 0.8 - 0.2 * place, "high": 0.95 - 0.2 * place, "n": 200},
            "queries": 10 ** (place + 1),
            "gap": None if regime == "SL-adv" else -0.05 * place,
            "verdict": VERDICTS[regime],
        })  # fmt: skip
    cells[-1] |= {"status": "failed", "error": f"out of memory {HOSTILE}"}
    columns = [
        {"key": "regime", "label": "regime", "kind": "text"},
        {"key": "robust", "label": "robust", "kind": "percent"},
        {"key": "queries", "label": "queries", "kind": "integer"},
        {"key": "gap", "label": "gap", "kind": "number"},
        {"key": "verdict", "label": "verdict", "kind": "verdict"},
    ]
    return {
        "format": 1,
        "name": f"study {HOSTILE}",
        "created": "2026-11-22T20:00:00+00:00",
        "updated": "2026-11-22T21:00:00+00:00",
        "seeds": list(range(seeds)),
        "versions": {"torch": "2.14.1", "labelbandit": "0.1.0"},
        "machine": {"cpu": "two cores", "device": "cpu"},
        "config": {"dataset": ["digits"], "regimes": list(REGIMES), "attack": {"steps": 100}},
        "cells": cells,
        "tables": [{"id": "pgd", "title": "PGD", "note": HOSTILE, "columns": columns, "rows": rows,
                    "files": {"md": "tables/pgd.md"}}],
        "figures": [{"id": "transfer", "title": "Transfer", "file": "figures/transfer.png", "alt": "a heat map"},
                    {"id": "cost", "title": "Cost", "file": "figures/cost.png", "alt": "bars"}],
        "reading": [f"The first sentence {HOSTILE}.", "The second sentence."],
    }  # fmt: skip


def study_directory(path, seeds=2):
    """Write a whole study: four regimes, the last cell failed."""
    study = study_json(seeds)
    (path / "figures").mkdir(parents=True)
    for figure in study["figures"]:
        (path / figure["file"]).write_bytes(png(120, 80))
    for cell in study["cells"]:
        if cell["status"] == "finished":
            run_directory(path / cell["run"], cell["regime"], cell["seed"])
            gallery(path / "cells" / cell["hash"] / "gallery.npz")
    write_study(path, study)
    return path


def small_study(path):
    """Write a study of one cell, to be damaged."""
    study = study_json(1)
    study["cells"] = study["cells"][:1]
    (path / "figures").mkdir()
    for figure in study["figures"]:
        (path / figure["file"]).write_bytes(png())
    run_directory(path / "cells" / "sl0" / "run", "SL")
    gallery(path / "cells" / "sl0" / "gallery.npz")
    write_study(path, study)
    return path


def write_study(path, study):
    (path / "study.json").write_text(study if isinstance(study, str) else json.dumps(study))
