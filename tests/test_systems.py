"""Names of systems: they say what was trained."""

from training.registry import system_name


def test_a_neural_model_is_named_after_its_loss() -> None:
    assert system_name("sasrec", {"beta": 0.0, "objective": "next"}) == "sasrec"
    assert system_name("sasrec", {"beta": 0.5, "objective": "next"}) == "sasrec+nce"


def test_what_differs_from_the_paper_is_in_the_name() -> None:
    options = {"beta": 0.5, "negative_pairing": "published", "objective": "next-played"}
    assert system_name("caser", options) == "caser+nce+published-pairing+next-played"
    assert system_name("sasrec", {"beta": 0.0, "plays": "played"}) == "sasrec+played-only"


def test_the_pairing_of_a_loss_that_is_not_there_is_not_named() -> None:
    assert system_name("sasrec", {"beta": 0.0, "negative_pairing": "published"}) == "sasrec"


def test_a_baseline_is_its_model() -> None:
    assert system_name("wrmf-nr", {"seed": 1}) == "wrmf-nr"
