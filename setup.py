"""What pyproject.toml cannot say: `results/` and `claims.toml` travel inside the package."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class WithClaims(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file("claims.toml", str(Path(self.build_lib, "ncutils", "claims.toml")))


setup(
    packages=[*find_packages(include=["ncutils", "ncutils.*"]), "ncutils.results"],
    package_dir={"ncutils.results": "results"},
    cmdclass={"build_py": WithClaims},
)
