"""What pyproject.toml cannot say: the archived results, kept in `results/`, travel inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ncutils", "ncutils.*"]), "ncutils.results"],
    package_dir={"ncutils.results": "results"},
)
