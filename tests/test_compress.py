"""Clustering, quantising and their bytes on disk; the time-series transformer they are for."""

import math
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from sparsebench.compress import Compressed, clustered, load, quantised, save
from sparsebench.config.compose import compose
from sparsebench.errors import UserError
from sparsebench.models.time_transformer import sinusoids, time_transformer
from sparsebench.run import run
from sparsebench.tasks.compress import gathered, put

QUICK = [
    "task=compress", "model=time_transformer", "data=mnist1d", "data.subset=320", "epochs=1",
    "batch_size=32", "optimizer=adam", "optimizer.lr=0.003", "optimizer.weight_decay=0",
    "method=gmp", "sparsity=0.8", "method.every=1it", "method.end=50%", "plots=false", "quiet=true",
    "trainer.accelerator=cpu",
]  # fmt: skip
STAGES = ("trained", "clustered", "quantised", "clustered_quantised")


def train(folder, *words):
    result = run(compose([*QUICK, f"runs={folder}", *words]))
    assert result["status"] == "finished", result.get("error")
    return result["metrics"]


# --- clusters -------------------------------------------------------------------------------------


def test_clusters_of_a_few_weights_are_those_worked_out_by_hand():
    """Begin at 1, 5.5, 10: {1, 2}, {5, 6}, {10}; means 1.5, 5.5, 10 change no member."""
    found = clustered(torch.tensor([[1.0, 2.0, 5.0], [6.0, 10.0, 2.0]]), 3)
    assert found.codes.tolist() == [[0, 0, 1], [1, 2, 0]]
    assert torch.allclose(found.book, torch.tensor([5 / 3, 5.5, 10.0]))
    assert torch.allclose(found.tensor(), torch.tensor([[5 / 3, 5 / 3, 5.5], [5.5, 10.0, 5 / 3]]))


def test_zeros_are_a_cluster_of_their_own_at_code_0():
    weight = torch.tensor([0.0, 0.3, 0.0, -0.2, 0.4, -0.3, 0.01])
    found = clustered(weight, 3)
    assert found.book.tolist()[0] == 0.0
    assert torch.equal(found.codes == 0, weight == 0)  # what is small is not zero
    assert torch.allclose(found.book[1:], torch.tensor([-0.49 / 3, 0.35]))


def test_there_are_at_most_k_values_and_no_other_split_in_runs_is_a_fixed_point_by_hand():
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    weight[torch.rand(40, 50, generator=torch.Generator().manual_seed(1)) < 0.7] = 0.0
    found = clustered(weight, 16)
    values = found.tensor()
    assert len(values.unique()) <= 16
    assert torch.equal(values == 0, weight == 0)
    assert torch.equal(values, golden(weight.numpy(), 16))


def golden(weight, k):
    """Lloyd's algorithm in numpy, by all distances (as TensorFlow's tool looks values up)."""
    flat = weight.astype(np.float64).ravel()
    values = flat[flat != 0]
    centres = np.linspace(values.min(), values.max(), k - 1)
    while True:
        nearest = np.abs(values[:, None] - centres[None]).argmin(1)
        now = [
            values[nearest == c].mean() if (nearest == c).any() else centres[c]
            for c in range(k - 1)
        ]
        if np.array_equal(now, centres):
            break
        centres = np.array(now)
    flat[flat != 0] = centres[nearest]
    return torch.from_numpy(flat.reshape(weight.shape)).float()


def test_what_has_no_weight_left_has_one_value():
    found = clustered(torch.zeros(3, 4), 16)
    assert torch.equal(found.tensor(), torch.zeros(3, 4))


def test_gradients_of_a_cluster_are_summed_and_zero_does_not_learn():
    gradient = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    book = torch.tensor([0.0, 0.5, -0.5])
    codes = torch.tensor([1, 0, 2, 1])
    assert gathered(gradient, codes, book).tolist() == [0.0, 9.0, 4.0]


# --- few bits -------------------------------------------------------------------------------------


def test_eight_bits_are_those_worked_out_by_hand():
    found = quantised(Compressed(torch.tensor([0.0, 1.27, -1.27, 0.014, -0.016])), 8)
    assert found.codes.dtype == torch.int8
    assert found.codes.tolist() == [0, 127, -127, 1, -2]
    assert found.scale == pytest.approx(0.01)
    assert torch.allclose(found.tensor(), torch.tensor([0.0, 1.27, -1.27, 0.01, -0.02]))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_whole_numbers_are_half_a_step_off_at_most_and_keep_zeros(bits):
    weight = torch.randn(500, generator=torch.Generator().manual_seed(0))
    weight[::3] = 0.0
    found = quantised(Compressed(weight), bits)
    assert len(found.codes.unique()) <= 2**bits - 1
    assert float((found.tensor() - weight).abs().max()) <= found.scale / 2 + 1e-6
    assert not found.tensor()[::3].any()
    again = quantised(Compressed(found.tensor()), bits)
    assert torch.equal(again.codes, found.codes)


def test_sixteen_bits_are_half_precision():
    weight = torch.tensor([0.1, 3.0])
    assert torch.equal(quantised(Compressed(weight), 16).tensor().float(), weight.half().float())


def test_a_clustered_tensor_keeps_its_codes_and_has_a_small_book():
    groups = clustered(torch.randn(30, 30, generator=torch.Generator().manual_seed(0)), 8)
    small = quantised(groups, 8)
    assert torch.equal(small.codes, groups.codes)
    assert small.book.dtype == torch.int8
    assert float((small.tensor() - groups.tensor()).abs().max()) <= small.scale / 2 + 1e-6


def test_nothing_but_zeros_has_a_scale():
    assert torch.equal(quantised(Compressed(torch.zeros(5)), 8).tensor(), torch.zeros(5))


# --- files ----------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    groups = clustered(weight, 16)
    kept = {
        "a.weight": Compressed(weight),
        "b.weight": groups,
        "c.weight": quantised(groups, 8),
        "d.weight": quantised(Compressed(weight), 8),
        "f.weight": clustered(weight[0, :7], 2),
        "g.weight": clustered(weight[1, :5], 4),
        "h.weight": clustered(weight, 17),
        "e.half": quantised(Compressed(weight), 16),
        "steps": Compressed(torch.tensor(3)),
    }
    size = save(kept, tmp_path / "a.zip")
    assert size == (tmp_path / "a.zip").stat().st_size
    back = load(tmp_path / "a.zip")
    assert list(back) == list(kept)
    for name, stored in kept.items():
        assert back[name].codes.dtype == stored.codes.dtype
        assert torch.equal(back[name].tensor(), stored.tensor())
    save(kept, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_codes_take_the_bits_that_their_frequencies_need(tmp_path):
    """16 values as often as each other are 4 bits a weight; a pruned layer needs less."""
    stream = torch.Generator().manual_seed(0)
    book = torch.linspace(-1, 1, 16)
    codes = torch.randint(16, (256, 256), generator=stream).to(torch.uint8)
    size = save({"w": Compressed(codes, book=book)}, tmp_path / "even.zip")
    bits = 4 * codes.numel() / 8
    assert bits < size < 1.01 * bits + 400
    codes[torch.rand(256, 256, generator=stream) < 0.9] = 0
    size = save({"w": Compressed(codes, book=book)}, tmp_path / "pruned.zip")
    shares = torch.bincount(codes.flatten().long()) / codes.numel()
    bits = -float((shares * shares.log2()).sum()) * codes.numel() / 8
    assert bits < size < 1.5 * bits  # deflate is no arithmetic coder


def test_more_zeros_are_fewer_bytes(tmp_path):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    order = weight.abs().flatten().argsort()
    sizes = []
    for share in (0.0, 0.5, 0.9):
        pruned = weight.clone()
        pruned.view(-1)[order[: int(share * 4096)]] = 0.0
        sizes.append(save({"w": Compressed(pruned)}, tmp_path / "w.zip"))
    assert sizes[0] > 1.5 * sizes[1] > 5 * sizes[2]


def test_a_model_gets_what_is_stored():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    tensors = {n: Compressed(torch.full_like(t, 2)) for n, t in model.state_dict().items()}
    tensors["0.weight"] = quantised(Compressed(torch.full((2, 3), 0.5)), 8)
    put(model, tensors)
    assert torch.allclose(model[0].weight, torch.full((2, 3), 0.5))
    assert int(model[1].num_batches_tracked) == 2


# --- the transformer ------------------------------------------------------------------------------


def test_sizes_of_the_transformer_are_those_counted_by_hand():
    """Embedding 2 x 32, four maps of 32 x 32, norms, 32 x 128 and back, classifier; biases."""
    model = time_transformer((2, 100), 7)
    block = 4 * (32 * 32 + 32) + 2 * 64 + (32 * 128 + 128) + (128 * 32 + 32)
    assert sum(p.numel() for p in model.parameters()) == (2 * 32 + 32) + block + (32 * 7 + 7)
    assert sum(p.numel() for p in time_transformer((40,), 10, kernel=5).parameters()) == (
        5 * 32 + 32 + block + 32 * 10 + 10
    )


def test_positions_are_sines_and_cosines():
    table = sinusoids(5, 6)
    for step in range(5):
        for pair in range(3):
            angle = step / 10000 ** (2 * pair / 6)
            assert float(table[step, 2 * pair]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[step, 2 * pair + 1]) == pytest.approx(math.cos(angle), abs=1e-6)
    assert sinusoids(4, 5).shape == (4, 5)


def test_attention_is_that_of_torch():
    """Of torch's own layer with the same weights, which joins query, key and value."""
    torch.manual_seed(0)
    block = time_transformer((40,), 10, num_heads=4).blocks[0].eval()
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(
            torch.cat([block.query.weight, block.key.weight, block.value.weight])
        )
        theirs.out_proj.weight.copy_(block.out.weight)
        x = torch.randn(2, 7, 32)
        assert torch.allclose(block.attend(x), theirs(x, x, x)[0], atol=1e-6)


def test_a_vector_is_one_band():
    model = time_transformer((40,), 10).eval()
    x = torch.randn(3, 40)
    assert torch.equal(model(x), model(x[:, None]))


@pytest.mark.parametrize("word", ["+model.args.num_heads=5", "+model.args.kernel=4"])
def test_sizes_that_do_not_fit_are_refused(tmp_path, word):
    with pytest.raises(UserError, match=r"model\.args\."):
        train(tmp_path, word)


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_has_accuracy_and_bytes_of_each_stage(tmp_path):
    found = train(tmp_path)
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    for stage in STAGES:
        assert found[f"{stage}/bytes"] == (folder / f"{stage}.zip").stat().st_size
        assert 0 <= found[f"{stage}/accuracy"] <= 1
        change = found[f"{stage}/accuracy"] - found["trained/accuracy"]
        assert found[f"{stage}/change"] == pytest.approx(change)
    assert found["trained/accuracy"] == pytest.approx(found["test/accuracy"])
    assert found["trained/bytes"] > 1.5 * found["clustered/bytes"]
    assert found["trained/bytes"] > 1.5 * found["quantised/bytes"]
    assert found["clustered_quantised/bytes"] < found["clustered/bytes"]
    raw = 4 * found["parameters"]
    assert found["clustered_quantised/ratio"] == pytest.approx(
        raw / found["clustered_quantised/bytes"]
    )
    assert not zipfile.ZipFile(folder / "trained.zip").testzip()
    kept = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    trained, small = load(folder / "trained.zip"), load(folder / "clustered_quantised.zip")
    for name, stored in trained.items():
        assert torch.equal(stored.tensor(), kept[f"model.{name}"])
        if stored.tensor().ndim > 1:  # the weights that are pruned
            assert len(small[name].tensor().unique()) <= 16
            assert not small[name].tensor()[stored.tensor() == 0].any()
        else:
            assert torch.equal(small[name].tensor(), stored.tensor())
    zeros = sum(int((s.tensor() == 0).sum()) for s in trained.values() if s.tensor().ndim > 1)
    assert zeros == found["weights"] - found["nonzeros"]


def test_fine_tuning_lowers_the_loss_of_few_values_and_moves_no_code(tmp_path):
    words = ["method=dense", "task.options.clusters=3", "epochs=3", "task.options.tune_lr=0.003"]
    plain = train(tmp_path / "a", "task.options.tune=0", *words)
    tuned = train(tmp_path / "b", "task.options.tune=5", *words)
    assert plain["weights_sha256"] == tuned["weights_sha256"]
    assert tuned["clustered/accuracy"] > plain["clustered/accuracy"]
    files = [load(next((tmp_path / name).glob("*/clustered.zip"))) for name in "ab"]
    assert all(torch.equal(files[0][name].codes, files[1][name].codes) for name in files[0])
    book = files[1]["blocks.0.fc1.weight"].book
    assert not torch.equal(book, files[0]["blocks.0.fc1.weight"].book)


def test_a_stage_that_is_left_out_changes_nothing(tmp_path):
    found = train(tmp_path, "task.options.clusters=null", "task.options.bits=null")
    for stage in STAGES[1:]:
        assert found[f"{stage}/bytes"] == found["trained/bytes"]
        assert found[f"{stage}/accuracy"] == found["trained/accuracy"]
        assert found[f"{stage}/change"] == 0.0


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("task.options.clusters=1", r"task\.options\.clusters=1: a whole number from 2 to 256"),
        ("task.options.bits=12", r"task\.options\.bits=12: one of 2, 3"),
        ("task.options.tune=-1", r"task\.options\.tune=-1"),
        ("+task.options.centroids=3", "no such option"),
    ],
)
def test_bad_options_are_refused_before_training(tmp_path, word, said):
    with pytest.raises(UserError, match=said):
        train(tmp_path, word)
    assert not list(tmp_path.glob("*/metrics.csv"))
