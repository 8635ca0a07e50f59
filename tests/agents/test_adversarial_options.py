"""The options of adversarial training: every mistake is one clear line before anything runs."""

import dataclasses

import pytest
import tyro

from agents.adversarial_config import AdversarialConfig
from agents.algorithms.registry import find_algorithm
from agents.common.protocols import default_eps
from agents.config import TrainConfig
from agents.train import run
from agents.training.run import train
from agents.training.schedule import learning_rate, phase_ends
from envs.errors import InputError


def config(algo="supervised", method="pgd", **adversarial):
    outer = {name: adversarial.pop(name) for name in list(adversarial) if hasattr(TrainConfig, name)}
    return TrainConfig(algo=algo, adversarial=AdversarialConfig(method, **adversarial), **outer)


def parse(line):
    return tyro.cli(TrainConfig, args=line.split())


def test_the_command_line_has_the_published_names():
    parsed = parse(
        "--algo epg --adversarial pgd --adv-eps 8/255 --adv-norm L2 --adv-steps 5 --adv-step-size 2/255 --adv-mix add "
        "--adv-weight 0.5 --adv-objective own --adv-start 3"
    )
    assert parsed.adversarial == AdversarialConfig(
        "pgd", 8 / 255, "L2", 5, 2 / 255, "add", 0.5, "own", None, 3.0
    )
    parsed.validate()
    assert TrainConfig.from_dict(parsed.to_dict()) == parsed
    assert parse("").adversarial == AdversarialConfig()


@pytest.mark.parametrize("algo", ["supervised", "reinforce", "epg"])
@pytest.mark.parametrize("method", ["fgsm", "pgd", "trades"])
def test_every_method_goes_with_every_direct_algorithm(algo, method):
    config(algo, method).validate()


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_actor_critics_are_shown_attacked_images(algo, method):
    config(algo, method, share=0.5).validate()


MISTAKES = [
    (
        config(method="none", eps=0.1),
        "--adv-eps is 0.1 but --adversarial is none; choose fgsm, pgd or trades",
    ),
    (config(method="none", start=2.0), "--adv-start is 2.0 but --adversarial is none"),
    (config(eps=8.0), "--adv-eps is 8; pixels lie in .0, 1., so expected at most 1; divide by 255"),
    (config(eps=-0.1), "--adv-eps is -0.1; expected a number above 0"),
    (config(eps=float("nan")), "--adv-eps is nan; expected a number above 0"),
    (config(steps=0), "--adv-steps is 0; expected a number above 0"),
    (config(share=1.5), "--adv-share is 1.5; expected a share above 0 and up to 1"),
    (config(start=-1.0), "--adv-start is -1.0; expected 0 or more passes"),
    (config(start=10.0, passes=10), "--adv-start is 10 passes, but training ends after 10; expected fewer"),
    (
        config(start=30.0, schedule="supervised:5,epg:20"),
        "--adv-start is 30 passes, but training ends after 25",
    ),
    (config("dqn", "trades"), "trades needs the logits of clean images in the loss, and dqn has none"),
    (config("ppo", "trades"), "trades needs the logits of clean images in the loss, and ppo has none"),
    (config("dqn"), "--adversarial pgd is not offered for dqn; use a2c, epg, ppo, reinforce, supervised"),
    (config(schedule="supervised:1,a2c:1", method="trades"), "and a2c has none"),
    (config("ppo", mix="add"), "ppo sees attacked images in place of clean ones"),
    (config("a2c", weight=0.2), "--adv-mix add and --adv-weight have no meaning; .*--adv-share"),
    (config("ppo", objective="own"), "ppo has no loss before its rollout is over; use --adv-objective ce"),
    (config(weight=0.2), "--adv-weight is 0.2 but has no meaning for --adversarial pgd: .*--adv-mix add"),
    (config(method="fgsm", share=0.5), "--adv-share is 0.5 but has no meaning .* use --adv-mix replace"),
    (config(method="fgsm", steps=3), "fgsm takes one step; use --adversarial pgd"),
    (config(method="trades", objective="ce"), "trades raises the divergence"),
    (config(method="pgd", trades_start="official"), "--adv-trades-start is official but has no meaning for"),
    (config(select="robust", probe_images=0), "--select robust goes by the probe, and --probe-images is 0"),
    (config(passes=2, total_images=10), "--passes is 2 and --total-images is given as well"),
    (config(passes=2, lr_warmup=3.0), "--lr-warmup is 3 passes, but training ends after 2"),
]


@pytest.mark.parametrize(("wrong", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_a_mistake_is_told_in_one_line(wrong, message):
    with pytest.raises(InputError, match=message) as error:
        wrong.validate()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 9.0, "norm": "L2"}, "eps is 9; expected above 0 and at most 8, the L2 diameter"),
        ({"start": 5.0, "total_images": 2000}, "--adv-start is 5 passes, [0-9,]+ images, but training ends .* 2,000"),
    ],
)  # fmt: skip
def test_what_only_the_data_shows_to_be_wrong_leaves_nothing_behind(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        train(dataclasses.replace(config(**options), progress=False))
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_on_the_command_line_ends_with_status_2(capsys):
    assert run(["--algo", "dqn", "--adversarial", "trades"]) == 2
    assert capsys.readouterr().err.startswith("error: trades needs the logits of clean images")


def test_default_radii():
    assert default_eps("Linf", 3) == pytest.approx(8 / 255)
    assert (default_eps("L2", 3), default_eps("Linf", 1), default_eps("L2", 1)) == (1.0, 0.1, 1.5)


def test_passes_set_the_length():
    assert phase_ends(TrainConfig(passes=2.5), 1000) == [2500]


def test_the_learning_rate_warms_up_and_decays_to_its_end():
    rate = learning_rate(TrainConfig(learning_rate=2e-4, lr_end=0.1), find_algorithm("supervised"), 0.05)
    assert rate(1.0) == 0
    assert rate(0.975) == pytest.approx(1e-4)
    assert rate(0.95) == pytest.approx(2e-4)
    assert rate(0.475) == pytest.approx(2e-4 * 0.55)
    assert rate(0.0) == pytest.approx(2e-5)
    constant = learning_rate(
        TrainConfig(learning_rate=1e-3, lr_schedule="constant"), find_algorithm("epg"), 0.5
    )
    assert (constant(0.75), constant(0.5), constant(0.1)) == (5e-4, 1e-3, 1e-3)
