"""What adversarial training adds to the losses, against the formulas; and what a run of it leaves behind."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agents import ExpectedPolicyGradient, Reinforce, Supervised, register_network
from agents.adversarial_config import AdversarialConfig
from agents.algorithms.adversarial import (
    AdversarialTraining,
    make_ascent,
    plan,
)
from agents.models.image_network import NETWORKS
from agents.training.run import resume, train
from envs import sb3_env
from tests.support.agent_runs import SHORT, metrics, same, short, state, stopping, summary
from tests.support.env_toys import random_images

SHAPE = (3, 9, 8)


def ascent(norm="Linf", eps=0.05, steps=1, step_size=None, start="clean"):
    return make_ascent(norm, eps, steps, step_size or eps, start, SHAPE)


def prepared(kind, regime, network="mlp", **options):
    """An algorithm and its first batch, collected but not yet trained on."""
    model = kind("ImagePolicy", sb3_env(random_images(), 16, tensors=True, seed=3), seed=0, max_grad_norm=0,
                 learning_rate=0.01, policy_kwargs={"network": network}, **options)  # fmt: skip
    with torch.no_grad():
        model.policy.action_net.weight.mul_(40)  # logits far from equal
    model.adversarial = regime
    task = model.env.task
    callback = model._setup_learn(1)[1]
    labels, rewards = task.labels, task.action_rewards()
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 1)
    return model, model._batch, labels, rewards


def signed(model, pixels, objective, eps=0.05):
    """The formula of FGSM, written out."""
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(model.policy.logits(leaf)), leaf)
    return (pixels + eps * gradient.sign()).clamp(0, 1)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.policy.parameters() if parameter.grad is not None]


def test_supervised_adds_the_weighted_cross_entropy_of_attacked_images():
    regime = AdversarialTraining(ascent(), "add", weight=0.2, objective="own")
    model, batch, labels, _ = prepared(Supervised, regime)
    moved = signed(model, batch.pixels, lambda logits: F.cross_entropy(logits, labels))
    logits = model.policy.logits
    total = F.cross_entropy(logits(batch.pixels), labels) + 0.2 * F.cross_entropy(logits(moved), labels)
    model.policy.zero_grad(set_to_none=True)
    total.backward()
    expected = gradients(model)
    model.train()
    for found, wanted in zip(gradients(model), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_the_papers_rule_takes_the_policy_gradient_loss_of_both_images(monkeypatch):
    regime = AdversarialTraining(ascent(eps=0.01), "add", weight=0.2, objective="own")
    model, batch, labels, rewards = prepared(Reinforce, regime, exploration=0.0)
    monkeypatch.setattr(model, "choose_actions", lambda logits: logits.detach().argmax(-1))

    def policy_gradient(logits):  # -mean(log p(a) [a = y]), p = softmax + 1e-6, renormalised
        p = logits.softmax(-1) + 1e-6
        p = p / p.sum(-1, keepdim=True)
        actions = logits.argmax(-1)
        return -(p.gather(1, actions[:, None])[:, 0].log() * (actions == labels)).mean()

    moved = signed(model, batch.pixels, policy_gradient, eps=0.01)
    assert torch.allclose(model.attacked_images(batch.pixels, labels, rewards), moved, atol=1e-6)
    wrong = model.policy.logits(batch.pixels).argmax(-1) != labels
    assert torch.equal(moved[wrong], batch.pixels[wrong])  # no reward, no gradient, no attack
    assert not torch.equal(moved, batch.pixels)
    term = model.adversarial_term(batch, labels, rewards)
    assert term.item() == pytest.approx(0.2 * policy_gradient(model.policy.logits(moved)).item(), rel=1e-5)


def test_the_papers_rule_draws_new_actions_on_the_attacked_images():
    regime = AdversarialTraining(ascent(), "add", objective="ce")
    model, batch, labels, rewards = prepared(Reinforce, regime, exploration=0.0)
    terms = [model.adversarial_term(batch, labels, rewards).item() for _ in range(8)]
    assert len(set(terms)) > 1
    torch.manual_seed(5)
    first = model.adversarial_term(batch, labels, rewards)
    torch.manual_seed(5)
    assert model.adversarial_term(batch, labels, rewards) == first


def test_the_expected_gradient_of_attacked_images_is_in_closed_form():
    regime = AdversarialTraining(ascent(), "add", weight=0.5, objective="own")
    model, batch, labels, rewards = prepared(ExpectedPolicyGradient, regime, exploration=0.1)

    def expected(logits):
        p = logits.softmax(-1) + 1e-6
        p = p / p.sum(-1, keepdim=True)
        right = p.gather(1, labels[:, None])[:, 0]
        return -((0.9 * right + 0.1 / 4).detach() * right.log()).mean()

    moved = signed(model, batch.pixels, expected)
    term = model.adversarial_term(batch, labels, rewards)
    assert term.item() == pytest.approx(0.5 * expected(model.policy.logits(moved)).item(), rel=1e-5)


def test_trades_adds_the_weighted_divergence_and_climbs_it():
    regime = AdversarialTraining(ascent(steps=5, step_size=0.02, start="gaussian"), "trades", weight=6.0)
    model, batch, labels, rewards = prepared(Supervised, regime)

    def divergence(first, second):
        p, q = first.softmax(-1), second.softmax(-1)
        return (p * (p / q).log()).sum(-1).mean()

    torch.manual_seed(4)
    moved = model.attacked_images(batch.pixels, labels, rewards)
    clean = model.policy.logits(batch.pixels)
    noise = batch.pixels + 0.05 * torch.randn_like(batch.pixels).sign()
    climbed = divergence(clean, model.policy.logits(moved))
    assert climbed > 2 * divergence(clean, model.policy.logits(noise.clamp(0, 1)))
    torch.manual_seed(4)
    term = model.adversarial_term(batch, labels, rewards)
    assert term.item() == pytest.approx(6 * climbed.item(), rel=1e-4)
    term.backward(retain_graph=True)
    both = gradients(model)
    model.policy.zero_grad(set_to_none=True)
    (6 * divergence(clean.detach(), model.policy.logits(moved))).backward()
    assert not all(
        torch.allclose(a, b) for a, b in zip(both, gradients(model), strict=True)
    )  # through p(x), too


def test_replacing_shows_attacked_images_and_trains_on_nothing_else():
    regime = AdversarialTraining(ascent(steps=3, step_size=0.03, start="random"), "replace")
    model, batch, labels, _ = prepared(Supervised, regime)
    clean, *_ = prepared(Supervised, None)[1:]
    change = (batch.pixels - clean.pixels).abs()
    assert 0.04 < change.max() <= 0.05 + 1e-6
    expected = F.cross_entropy(model.policy.logits(batch.pixels), labels)
    assert model.loss(batch.logits, batch).item() == pytest.approx(expected.item())
    assert expected > F.cross_entropy(model.policy.logits(clean.pixels), labels)
    assert torch.equal(
        batch.returns, (batch.actions == labels).float()
    )  # rewards of the actions on these images


def test_a_share_of_the_images_is_attacked():
    regime = AdversarialTraining(ascent(), "replace", share=0.5)
    model, batch, labels, rewards = prepared(Supervised, regime)
    counts = []
    for _ in range(30):
        moved = model.attacked_images(batch.pixels, labels, rewards)
        counts.append((moved != batch.pixels).flatten(1).any(1).float().mean())
    assert sum(counts) / 30 == pytest.approx(0.5, abs=0.1)


def test_attacks_begin_when_they_should():
    regime = AdversarialTraining(ascent(), "replace", begins=32)
    model = Supervised("ImagePolicy", sb3_env(random_images(), 16, tensors=True, seed=3), seed=0,
                       policy_kwargs={"network": "mlp"})  # fmt: skip
    model.adversarial = regime
    clean = model.env.task.dataset.images.float() / 255
    callback = model._setup_learn(1)[1]
    attacked = []
    for _ in range(4):
        rows = model.env.task.indices
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 1)
        attacked.append(not torch.equal(model._batch.pixels, clean[rows]))
        model.train()
    assert attacked == [False, False, True, True]


def test_crafting_leaves_running_statistics_and_dropout_alone():
    register_network("normalised", lambda shape: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(168, 8)))  # fmt: skip
    try:
        regime = AdversarialTraining(ascent(steps=4, step_size=0.02), "replace")
        model, batch, labels, rewards = prepared(Supervised, regime, network="normalised")
    finally:
        del NETWORKS["normalised"]
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    first, second = (model.attacked_images(batch.pixels, labels, rewards) for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    assert all(torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert model.policy.training


def test_options_become_a_regime():
    regime = plan(AdversarialConfig("fgsm", eps=0.01, weight=0.2, start=1.5), (3, 9, 8), 1000)
    assert (regime.rule, regime.weight, regime.objective, regime.begins) == ("add", 0.2, "own", 1500)
    assert (regime.ascent.steps, regime.ascent.step_size, regime.ascent.start) == (1, 0.01, "clean")
    regime = plan(AdversarialConfig("pgd", norm="L2"), (1, 28, 28), 1000)
    assert (regime.rule, regime.objective, regime.share, regime.begins) == ("replace", "ce", 1, 0)
    assert (regime.ascent.eps, regime.ascent.steps, regime.ascent.start) == (1.5, 7, "random")
    regime = plan(AdversarialConfig("trades"), (3, 32, 32), 1000)
    assert (regime.rule, regime.weight, regime.ascent.start) == ("trades", 6, "gaussian")
    official = plan(AdversarialConfig("trades", trades_start="official"), (3, 32, 32), 1000)
    assert official.ascent.start == "gaussian-unclipped"
    assert regime.ascent.eps == pytest.approx(8 / 255)


MODES = {
    "fgsm": ("reinforce", AdversarialConfig("fgsm", eps=0.05, weight=0.2, start=0.4)),
    "pgd": ("supervised", AdversarialConfig("pgd", norm="L2", steps=2, share=0.7)),
    "pgd of the own loss": ("reinforce", AdversarialConfig("pgd", steps=2, mix="add", objective="own")),
    "trades": ("epg", AdversarialConfig("trades", steps=2)),
    "ppo": ("ppo", AdversarialConfig("pgd", steps=1)),
    "a2c": ("a2c", AdversarialConfig("fgsm", share=0.5, start=0.3)),
}


def configuration(path, mode):
    algo, adversarial = MODES[mode]
    case = mode if mode in ("ppo", "a2c") else algo
    config = short(path, case, adversarial=adversarial, select="robust", probe_images=20, probe_steps=2)
    return dataclasses.replace(config, lr_warmup=0.2, total_images=700)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_stopped_run_ends_like_an_uninterrupted_one(mode, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(configuration(whole, mode))
    with stopping(monkeypatch, 5), pytest.raises(KeyboardInterrupt):
        train(configuration(stopped, mode))
    resume(stopped, progress=False)
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics(stopped) == metrics(whole)
    assert same(state(stopped), state(whole))


def test_the_probe_leaves_training_alone(tmp_path):
    weights = {}
    for images in (0, 30):
        path = tmp_path / str(images)
        adversarial = AdversarialConfig("pgd", steps=1)
        train(short(path, "reinforce", adversarial=adversarial, total_images=400, probe_images=images))
        weights[images] = (path / "model.safetensors").read_bytes()
        assert any("probe/accuracy" in line for line in metrics(path)) == (images > 0)
    assert weights[0] == weights[30]


def test_a_schedule_trains_every_phase_adversarially(tmp_path):
    config = short(tmp_path / "run", "schedule", adversarial=AdversarialConfig("pgd", steps=1))
    path = train(config).path
    shown = [line["train/accuracy"] for line in metrics(path) if "train/accuracy" in line]
    assert len(shown) >= SHORT["total_images"] // 300
    found = summary(path)
    assert found["adversarial"]["method"] == "pgd"
    assert found["val_robust_accuracy"] <= found["val_accuracy"]


def test_attacks_at_half_precision_stay_in_the_ball_and_train(tmp_path):
    adversarial = AdversarialConfig("pgd", steps=2)
    path = train(
        short(tmp_path / "run", "epg", adversarial=adversarial, precision="bf16", total_images=300)
    ).path
    assert all(line.get("train/loss", 0) < 10 for line in metrics(path))


def test_the_record_of_a_run_holds_the_values_used(tmp_path):
    adversarial = AdversarialConfig("trades", norm="L2", start=0.1)
    path = train(short(tmp_path / "run", "supervised", adversarial=adversarial, total_images=200)).path
    assert summary(path)["adversarial"] == {
        "method": "trades", "norm": "L2", "eps": 1.5, "steps": 10, "step_size": 0.375, "rule": "trades",
        "weight": 6.0, "objective": "divergence", "share": 1.0, "start": 0.1, "trades_start": "clipped",
    }  # fmt: skip
    assert AdversarialConfig().resolved(3) is None


def test_a_run_is_named_after_its_regime(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(dataclasses.replace(short(None, "supervised"), run_dir=None, total_images=100,
                                    adversarial=AdversarialConfig("fgsm")))  # fmt: skip
    assert run.path.name == "digits-supervised-fgsm-mlp-s0"
