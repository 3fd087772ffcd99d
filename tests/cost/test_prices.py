from __future__ import annotations

import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from gptcli.cost.hardware import USER, Gpu, find_gpu, gpus
from gptcli.cost.prices import (
    OFFER_KINDS,
    energy,
    hourly_price,
    offers_for,
    price_ranges,
    published_offers,
    read_offers,
)
from gptcli.errors import InputError


def test_prices_where_something_supports_them() -> None:
    price = hourly_price(find_gpu("v100"))
    assert price is not None
    assert (price.value, price.date) == (1.5, "2020-06-03")
    assert hourly_price(find_gpu("mi300x")) is None
    assert hourly_price(None) is None
    said = hourly_price(find_gpu("h100"), 2.25)
    assert said is not None
    assert said.value == 2.25


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_prices_carry_source_and_date(gpu: Gpu) -> None:
    price = hourly_price(gpu)
    assert price is None or (
        price.value > 0
        and price.source
        and re.fullmatch(r"\d{4}-\d{2}-\d{2}", price.date)
        and price.url
    )


def test_the_price_is_the_median_on_demand() -> None:
    gpu = find_gpu("h100")
    offers = offers_for(gpu)
    on_demand = [offer.dollars_per_hour for offer in offers if offer.kind == "on-demand"]
    price = hourly_price(gpu)
    assert price is not None
    assert price.value == statistics.median(on_demand)
    ranges = {found.kind: found for found in price_ranges(offers)}
    assert set(ranges) == set(OFFER_KINDS), "h100 is offered in each way"
    assert (ranges["on-demand"].low, ranges["on-demand"].high) == (min(on_demand), max(on_demand))
    assert sum(found.offers for found in ranges.values()) == len(offers)


def test_offers_name_gpus_and_sellers() -> None:
    for offer in published_offers():
        assert all(find_gpu(name).name == name for name in offer.gpus)
        assert offer.seller
        assert offer.kind in OFFER_KINDS


def write_offers(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_offers_of_a_file_replace_those_of_their_gpus(tmp_path: Path) -> None:
    text = '[[offer]]\ngpus = ["H100-SXM", "b200"]\ndollars_per_hour = 2\n'
    own = read_offers(write_offers(tmp_path / "mine.toml", text))
    assert own[0].gpus == ("h100", "b200"), "by their names"
    price = hourly_price(find_gpu("b200"), own=own)
    assert price is not None
    assert (price.value, price.source) == (2, f"on demand: {tmp_path / 'mine.toml'}")
    assert hourly_price(find_gpu("a100"), own=own) == hourly_price(find_gpu("a100"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no 'offer'"),
        ("offer = []", "no \\[\\[offer\\]\\]"),
        ("offer = 3", "offer: 3 is not a list"),
        ("[[offer]]\ndollars_per_hour = 2", r"offer\[0\]: no 'gpus'"),
        ('[[offer]]\ngpus = ["h100"]', r"offer\[0\]: no 'dollars_per_hour'"),
        ('[[offer]]\ngpus = []\ndollars_per_hour = 2', r"offer\[0\].gpus: is empty"),
        ('[[offer]]\ngpus = ["h10"]\ndollars_per_hour = 2', r"offer\[0\].gpus: unknown GPU 'h10'"),
        ('[[offer]]\ngpus = ["h100"]\ndollars_per_hour = 0', r"offer\[0\].dollars_per_hour"),
        ('[[offer]]\ngpus = ["h100"]\ndollars_per_hour = nan', r"offer\[0\].dollars_per_hour"),
        ('[[offer]]\ngpus = ["h100"]\ndollars_per_hour = "2"', r"offer\[0\].dollars_per_hour"),
        ('[[offer]]\ngpus = ["h100"]\ndollars_per_hour = 2\nkind = "free"', r"offer\[0\].kind"),
        ('[[offer]]\ngpus = ["h100"]\ndollars_per_hour = 2\nprice = 2', "unknown key 'price'"),
        ('[[offer]]\ngpus = ["h100"]\ndollars_per_hour = 2\ndate = "May"', "'May' is no date"),
        ("[[offer]", "mine.toml"),
    ],
)  # fmt: skip
def test_a_bad_file_of_prices_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_offers(write_offers(tmp_path / "mine.toml", text))
    assert "mine.toml" in str(caught.value)


def test_gpt3s_energy() -> None:
    used = energy(find_gpu("v100"), 14.8 * 24 * 10_000)
    assert used is not None
    assert used.kwh == pytest.approx(1_287_000, rel=0.005)
    assert used.co2_kg == pytest.approx(552_000, rel=0.005)


def test_an_hour_at_a_kilowatt() -> None:
    used = energy(find_gpu("b200"), 1)
    assert used is not None
    assert used.kwh == pytest.approx(1.0 * 1.1 * 1.1)
    assert used.co2_kg == pytest.approx(used.kwh * 0.429)
    assert [a.value for a in used.assumptions] == [1000, 1.1, 1.1, 0.429]
    assert all(a.source and a.date and a.url for a in used.assumptions)


def test_unknown_figures_stay_unknown() -> None:
    assert energy(None, 5) is None
    assert energy(replace(find_gpu("a100"), watts=None), 5) is None


@pytest.mark.parametrize(
    ("gpu_hours", "factors", "mwh", "tonnes"),
    [
        # Luccioni et al. 2022, BLOOM: boards alone, 57 g a kWh
        (1_082_990, {"server": 1.0, "pue": 1.0, "carbon": 0.057}, 433.2, 24.69),
        # Touvron et al. 2023, Table 15, LLaMA 65B: 400 W, PUE 1.1, 0.385 kg a kWh
        (1_022_362, {"server": 1.0, "pue": 1.1, "carbon": 0.385}, 449, 173),
    ],
    ids=["BLOOM", "LLaMA 65B"],
)
def test_published_energy(
    gpu_hours: int, factors: dict[str, float], mwh: float, tonnes: float
) -> None:
    found = energy(find_gpu("a100"), gpu_hours, **factors)
    assert found is not None
    assert found.kwh / 1000 == pytest.approx(mwh, rel=0.005)
    assert found.co2_kg / 1000 == pytest.approx(tonnes, rel=0.005)
    assert {row.source for row in found.assumptions[1:]} == {USER}
