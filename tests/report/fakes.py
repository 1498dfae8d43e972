"""Folders as training and the other commands leave them, with known numbers, and a page as a browser reads it."""

import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from diffusion.config import config, to_json

VOID = {"meta", "link", "img", "wbr"}


def write_run(folder, rows=(), steps=(), **blocks):
    """A run that logged the rows and drew grids at the steps, each of another brightness."""
    folder.mkdir(parents=True)
    made = to_json(config(**{"training": {"num_steps": 100}, **blocks}))
    (folder / "config.json").write_text(json.dumps(made))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "samples").mkdir()
    for step in steps:
        for kind, more in (("raw", 0), ("ema", 100)):
            save(folder / "samples" / f"step_{step:07d}_{kind}.png", step % 100 + more)
    return folder


def save(file, brightness, size=(20, 30)):
    Image.fromarray(np.full(size, brightness, np.uint8)).save(file)


def evaluation(values, protocol_hash="1f3a9c02", **changed):
    """A row of evaluations.jsonl."""
    protocol = {
        "metric": {"name": "frechet", "reads": "pool"},
        "num_samples": 10000,
        "features": {"name": "inception", "sha256": "0123456789abcdef" * 4},
        "reference": {"hash": "ab12" * 8, "num_images": 50000},
    }
    row = {
        "values": values,
        "protocol": protocol | changed.pop("protocol", {}),
        "protocol_hash": protocol_hash,
        "sampler": {"name": "ddim", "eta": 0.0, "threshold": "clip"},
        "grid": {"name": "strided"},
        "guidance": {"scale": 1.0, "rescale": 0.0},
        "labels": None,
        "prompts": None,
        "num_steps": 50,
        "nfe": 50,
        "seed": 0,
        "ema": "0.9999",
        "checkpoint_step": 2000,
    }
    return json.dumps(row | changed) + "\n"


def likelihood(**changed):
    """A JSON of --mode=likelihood."""
    numbers = {
        "bound/total": {"mean": 3.25, "standard_error": 0.0625},
        "ode/total": {"mean": 2.5, "standard_error": None},
        "bound/t": [1, 2],
    }
    protocol = {
        "variance": "large",
        "threshold": "clip",
        "num_steps": 1000,
        "num_terms": None,
        "ode_levels": 200,
        "ode_log_snr": [-10.0, 10.0],
        "solver": "heun",
        "trace": "hutchinson",
        "num_probes": 1,
        "dequantise": "uniform",
        "seed": 0,
    }
    written = {
        "split": "test",
        "num_images": 1797,
        "conditions": [],
        "protocol": protocol,
        "checkpoint_step": 2000,
        "ema": "0.9999",
        "config": {"data.name": "digits"},
        "bits_per_dimension": numbers,
    }
    return json.dumps(written | changed)


class Page(HTMLParser):
    """What a page holds: elements as (tag, attributes), headings, all text but styles, and tables.

    tables: (the heading above, rows of cells' texts); sections: id -> its text.
    """

    def __init__(self, text):
        super().__init__()
        self.elements, self.headings, self.tables = [], [], []
        self.texts, self._open, self._section = {}, [], ""
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = attrs["id"]
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")
        elif tag == "table":
            self.tables.append((self.headings[-1], []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            row = self.tables[-1][1][-1]
            row[-1] = " ".join(row[-1].split())

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.texts[self._section] = self.texts.get(self._section, "") + data
        if {"td", "th"} & set(self._open):
            self.tables[-1][1][-1][-1] += data
        elif {"h1", "h2", "h3"} & set(self._open):
            self.headings[-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def under(self, heading):
        """The rows of the tables under a heading."""
        return [rows for above, rows in self.tables if above == heading]
