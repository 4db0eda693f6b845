from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from jobs.errors import FeaturesNotFinite
from jobs.recipes import HeadRecipe
from jobs.training.head import assign_folds, fit_head, fit_linear_head, l2_path
from tests.training_jobs import REPOSITORY


def clusters(count: int, width: int, classes: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw features around one centre per class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, width, generator=generator)
    return centres[labels] + spread * noise + 3.0, labels


def names(count: int) -> list[str]:
    return [f"image {i}" for i in range(count)]


@pytest.mark.parametrize(("count", "width"), [(40, 120), (200, 10)])
def test_the_fitted_head_is_the_minimum_of_the_penalised_loss(count: int, width: int) -> None:
    features, labels = clusters(count, width, 3)
    head = fit_linear_head(features, labels, 3, l2=0.01).double()
    rows = features.double()
    centred = rows - rows.mean(dim=0)
    scale = centred.square().mean(dim=0).sqrt().mean()
    weight = (head.weight.detach() * scale).requires_grad_()
    bias = (head.bias.detach() + head.weight.detach() @ rows.mean(dim=0)).requires_grad_()
    loss = F.cross_entropy(centred / scale @ weight.T + bias, labels)
    loss = loss + 0.01 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert float(weight.grad.abs().max()) < 1e-5
    assert float(bias.grad.abs().max()) < 1e-5


def test_the_result_is_the_same_every_time_and_in_any_order_of_images() -> None:
    features, labels = clusters(60, 90, 3)
    first = fit_head(features, labels, names(60), 3, HeadRecipe())
    again = fit_head(features, labels, names(60), 3, HeadRecipe())
    assert torch.equal(first.head.weight, again.head.weight)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    shuffled_names = [names(60)[i] for i in order.tolist()]
    shuffled = fit_head(features[order], labels[order], shuffled_names, 3, HeadRecipe())
    assert shuffled.l2 == first.l2
    torch.testing.assert_close(shuffled.head.weight, first.head.weight, rtol=1e-3, atol=1e-5)


def test_noise_asks_for_a_stronger_penalty_than_signal() -> None:
    signal, labels = clusters(80, 40, 2, spread=0.1)
    noise = torch.randn(80, 40, generator=torch.Generator().manual_seed(2))
    of_signal = fit_head(signal, labels, names(80), 2, HeadRecipe())
    of_noise = fit_head(noise, labels, names(80), 2, HeadRecipe())
    assert of_signal.l2 < of_noise.l2
    assert of_signal.out_of_fold_loss < 0.1 < of_noise.out_of_fold_loss


def test_out_of_fold_logits_are_those_of_heads_that_did_not_see_the_image() -> None:
    features, labels = clusters(50, 20, 2, spread=3.0)
    recipe = HeadRecipe(folds=3, l2_strongest=0.1, l2_weakest=0.1)
    fit = fit_head(features, labels, names(50), 2, recipe)
    folds = assign_folds(labels.tolist(), names(50), 3)
    seen = folds != 0
    # The same penalty means the same only at the same centre and scale: compare decisions.
    alone = fit_linear_head(features[seen], labels[seen], 2, l2=0.1)
    expected, found = alone(features[~seen]).softmax(1), fit.out_of_fold_logits[~seen].softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.08)


def test_copies_of_an_image_never_lie_in_different_folds() -> None:
    groups = [f"image {i // 3}" for i in range(60)]
    folds = assign_folds([0] * 60, groups, 5).tolist()
    assert all(len({folds[i] for i in range(60) if groups[i] == g}) == 1 for g in set(groups))


def test_every_fold_holds_its_share_of_every_class() -> None:
    labels = [0] * 50 + [1] * 10
    folds = assign_folds(labels, names(60), 5)
    for label, share in ((0, 10), (1, 2)):
        chosen = folds[torch.tensor(labels) == label]
        assert torch.bincount(chosen, minlength=5).tolist() == [share] * 5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tiny_sets_still_give_a_head(count: int) -> None:
    features, labels = clusters(count, 30, 2)
    fit = fit_head(features, labels, names(count), 2, HeadRecipe())
    assert fit.out_of_fold_logits.shape == (count, 2)
    assert torch.isfinite(fit.head(features)).all()


def test_features_that_are_not_finite_are_counted() -> None:
    features, labels = clusters(10, 5, 2)
    features[3, 2] = torch.inf
    features[4, 1] = torch.nan
    with pytest.raises(FeaturesNotFinite) as refused:
        fit_head(features, labels, names(10), 2, HeadRecipe())
    assert (refused.value.bad_images, refused.value.images) == (2, 10)


def test_features_without_any_spread_give_the_class_frequencies() -> None:
    head = fit_linear_head(torch.ones(4, 3), torch.tensor([0, 0, 0, 1]), 2, l2=0.1)
    scores = head(torch.ones(1, 3)).softmax(1)
    torch.testing.assert_close(scores, torch.tensor([[0.75, 0.25]]), rtol=1e-4, atol=1e-4)


def test_penalties_are_tried_from_the_strongest_to_the_weakest() -> None:
    path = l2_path(HeadRecipe(l2_strongest=1.0, l2_weakest=0.01, l2_per_decade=2))
    assert path == pytest.approx([1.0, 10**-0.5, 0.1, 10**-1.5, 0.01])


def test_no_penalty_is_weaker_than_the_weakest() -> None:
    path = l2_path(HeadRecipe(l2_strongest=1.0, l2_weakest=0.04, l2_per_decade=2))
    assert path == pytest.approx([1.0, 10**-0.5, 0.1])
    assert l2_path(HeadRecipe(l2_strongest=0.3, l2_weakest=0.3)) == [0.3]


def test_the_head_of_a_large_problem_is_close_to_the_minimum() -> None:
    features, labels = clusters(2000, 800, 200)
    l2 = 0.01
    head = fit_linear_head(features, labels, 200, l2=l2).double()
    rows = features.double()
    centre = rows.mean(dim=0)
    scale = (rows - centre).square().mean(dim=0).sqrt().mean()
    weight = (head.weight.detach() * scale).requires_grad_()
    bias = (head.bias.detach() + head.weight.detach() @ centre).requires_grad_()
    loss = F.cross_entropy((rows - centre) / scale @ weight.T + bias, labels)
    (loss + l2 * weight.square().sum()).backward()
    assert weight.grad is not None
    # The penalty makes the loss strongly convex: this bounds the distance to the minimum in nats.
    assert float(weight.grad.square().sum()) / (4 * l2) < 1e-3


def test_progress_goes_from_penalty_to_penalty_and_is_told_in_every_pass() -> None:
    features, labels = clusters(60, 20, 2)
    told: list[tuple[int, int]] = []

    def poll(done: int, total: int) -> bool:
        told.append((done, total))
        return False

    path = l2_path(HeadRecipe())
    fit_head(features, labels, names(60), 2, HeadRecipe(), poll)
    done = [each for each, _ in told]
    assert done == sorted(done)
    assert {total for _, total in told} == {len(path) + 1}
    assert told[-1] == (len(path) + 1, len(path) + 1)
    assert done.count(0) >= 5  # each fold's first fit asks


def test_a_search_can_be_left_at_any_pass() -> None:
    features, labels = clusters(60, 20, 2)

    class Stopped(Exception):
        pass

    def poll(done: int, _total: int) -> bool:
        if done == 2:
            raise Stopped
        return False

    with pytest.raises(Stopped):
        fit_head(features, labels, names(60), 2, HeadRecipe(), poll)


def test_when_the_time_is_over_the_best_penalty_so_far_is_used() -> None:
    features, labels = clusters(60, 20, 2)
    tried = set()

    def poll(done: int, total: int) -> bool:
        tried.add(done)
        return done >= 3

    fit = fit_head(features, labels, names(60), 2, HeadRecipe(), poll)
    path = l2_path(HeadRecipe())
    assert tried == {0, 1, 2, 3, len(path) + 1}
    assert fit.l2 in path[:3]
    correct = fit.head(features).argmax(dim=1) == labels
    assert float(correct.float().mean()) > 0.9


_MANY_CLASSES = """
import json, time
import torch
from jobs.memory import peak_bytes_of_process
from jobs.recipes import HeadRecipe
from jobs.training.head import fit_head
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
labels = torch.arange(2000) % 100
features = torch.randn(100, 1280, generator=generator)[labels]
features = features + 3 * torch.randn(2000, 1280, generator=generator)
names = [str(i) for i in range(2000)]
started, before = time.process_time(), peak_bytes_of_process()
last, longest = time.monotonic(), 0.0
def poll(done, total):
    global last, longest
    now = time.monotonic()
    last, longest = now, max(longest, now - last)
    return False
fit_head(features, labels, names, 100, HeadRecipe(), poll)
used = peak_bytes_of_process() - before
print(json.dumps([time.process_time() - started, used / (1 << 20), longest]))
"""


@pytest.mark.slow
def test_many_classes_take_little_memory_and_are_never_silent_for_long() -> None:
    command = [sys.executable, "-c", _MANY_CLASSES]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    cpu_seconds, mebibytes, longest_silence_seconds = json.loads(ended.stdout)
    assert cpu_seconds < 120  # 3 on two idle cores
    assert mebibytes < 400  # 130
    assert longest_silence_seconds < 60


def test_a_balanced_head_is_the_one_of_repeated_rare_images() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0] * 60 + [1] * 20)
    features = torch.randn(80, 12) + labels[:, None] * 0.8
    groups = [f"image {index}" for index in range(80)]
    repeated = torch.cat([torch.arange(60), torch.arange(60, 80).repeat(3)])
    one = replace(HeadRecipe(), l2_strongest=0.01, l2_weakest=0.01)
    balanced = fit_head(features, labels, groups, 2, replace(one, class_weights="balanced"))
    plain = fit_head(
        features[repeated], labels[repeated], [groups[i] for i in repeated], 2,
        replace(one, class_weights="none"),
    )  # fmt: skip
    found, expected = (fit.head(features).softmax(dim=1) for fit in (balanced, plain))
    # The scale of features, which the penalty sees, is that of other means: nearly the same
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    unweighted = fit_head(features, labels, groups, 2, replace(one, class_weights="none"))
    assert (unweighted.head(features).argmax(1) == 1).sum() < (found.argmax(1) == 1).sum()


def test_views_are_learned_from_and_never_judged() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    centre = torch.randn(60, 8, generator=generator) + labels[:, None]
    noise = torch.randn(2, 60, 8, generator=generator)  # shows nothing of the image
    alone = fit_head(centre, labels, names(60), 2, HeadRecipe())
    assert torch.equal(
        fit_head(centre[None], labels, names(60), 2, HeadRecipe()).head.weight, alone.head.weight
    )
    copied = fit_head(centre.expand(3, -1, -1), labels, names(60), 2, HeadRecipe())
    assert copied.out_of_fold_logits.shape == (60, 2)
    # Copies of every image are the same objective; a copy in another fold would show itself
    torch.testing.assert_close(copied.head.weight, alone.head.weight, rtol=1e-3, atol=1e-4)
    assert copied.out_of_fold_loss == pytest.approx(alone.out_of_fold_loss, rel=1e-3)
    disturbed = fit_head(torch.cat([centre[None], noise]), labels, names(60), 2, HeadRecipe())
    own = torch.nn.functional.cross_entropy(disturbed.out_of_fold_logits, labels)
    assert disturbed.out_of_fold_loss == pytest.approx(own.item(), rel=1e-5)
