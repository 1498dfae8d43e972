"""A run's table: rows of one protocol compare, rows of several are refused."""

import copy
import json

import pytest

from diffusion import evaluations

PROTOCOL = {
    "metric": {"name": "frechet", "reads": "pool"},
    "num_samples": 10_000,
    "features": {"name": "inception", "weights": "6726"},
    "reference": {
        "sha256": "0123456789abcdef",
        "data": {"name": "cifar10"},
        "split": "train",
        "num_images": 50_000,
        "images": "ff",
    },
}


def row(protocol=PROTOCOL, value=3.17, file="a.json", **changes):
    return {
        "values": {f"FID@{protocol['num_samples']}": value},
        "protocol": protocol,
        "protocol_hash": evaluations.protocol_hash(protocol),
        "file": file,
        "sampler": {"name": "ddim", "eta": 0.5, "threshold": "clip"},
        "grid": {"name": "strided"},
        "guidance": {"scale": 3.0, "rescale": 0.0, "plus_plus": False, "guide_scale": 1.0},
        "labels": None,
        "prompts": None,
        "num_steps": 50,
        "nfe": 50,
        "seed": 1,
        "ema": "0.9999",
        "checkpoint_step": 800_000,
        **changes,
    }


def changed(**changes):
    protocol = copy.deepcopy(PROTOCOL)
    for key, value in changes.items():
        protocol[key] = value
    return protocol


def test_rows_come_back_in_order_and_each_evaluation_once(tmp_path):
    rows = [row(), row(file="b.json", value=2.0)]
    for one in [*rows, rows[0]]:
        evaluations.append(tmp_path, one)
    assert evaluations.read(tmp_path) == rows
    assert evaluations.read(tmp_path / "nowhere") == []


def test_a_line_that_was_cut_short_is_passed_over_and_the_next_row_starts_a_line(tmp_path):
    evaluations.append(tmp_path, row())
    with open(tmp_path / evaluations.FILE, "a") as file:
        file.write(json.dumps(row(file="b.json"))[:40])
    evaluations.append(tmp_path, row(file="c.json"))
    assert [r["file"] for r in evaluations.read(tmp_path)] == ["a.json", "c.json"]


def test_a_table_has_the_numbers_and_the_way_of_drawing():
    lines = evaluations.table([row(), row(value=2.5, nfe=None, labels=[3], guidance={"scale": 1.0})]).splitlines()
    assert lines[0] == "| drawn by | FID@10000 |"
    how = "ddim (eta 0.5), 50 steps, strided, NFE 50, guidance scale 3.0, seed 1, EMA 0.9999, step 800000"
    assert lines[2] == f"| {how} | 3.17 |"
    assert "NFE chosen while it runs, labels [3], seed 1" in lines[3]
    assert lines[3].endswith("| 2.5 |")
    strict = row(sampler={"name": "heun", "threshold": "dynamic"}, grid={"name": "karras", "rho": 3.0, "num_steps": 50})
    assert "| heun (threshold dynamic), 50 steps, karras (rho 3.0), NFE" in evaluations.table([strict])
    assert evaluations.table([row()], names=["runs/a"]).splitlines()[2].startswith("| runs/a | ddim")


@pytest.mark.parametrize(
    ("protocol", "where"),
    [
        (changed(num_samples=5000), "num_samples: 10000 and 5000"),
        (changed(metric={"name": "frechet", "reads": "spatial"}), "metric.reads: pool and spatial"),
        (changed(features={"name": "inception", "weights": "ffff"}), "features.weights: 6726 and ffff"),
        (changed(reference={**PROTOCOL["reference"], "sha256": "ee"}), "reference.sha256: 0123456789abcdef and ee"),
        (changed(reference=None), "reference: nothing and None"),
    ],
)
def test_rows_of_two_protocols_are_refused_in_one_table_and_cut_into_two(protocol, where):
    rows = [row(), row(protocol), row(value=1.0)]
    with pytest.raises(ValueError, match="do not compare") as refused:
        evaluations.table(rows)
    assert where in str(refused.value)
    assert evaluations.groups(rows) == [[rows[0], rows[2]], [rows[1]]]


def test_the_hash_of_a_protocol_does_not_see_the_order_of_its_keys():
    again = dict(reversed(PROTOCOL.items()))
    assert evaluations.protocol_hash(again) == evaluations.protocol_hash(PROTOCOL)


def test_a_protocol_in_words():
    assert evaluations.words(PROTOCOL) == (
        "frechet (reads pool) of 10000 samples, features inception, against cifar10 train (50000 images), "
        "reference 01234567"
    )
    assert evaluations.words(changed(reference={"sha256": "abcdef0123"})).endswith("against reference abcdef01")
    assert evaluations.words(changed(reference=None)).endswith("no reference")
